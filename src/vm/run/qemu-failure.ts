/** What QEMU has against something, as it says it, and what to do. */
import { type RpcCode, RpcError } from '../../core/errors.ts'

const KNOWN: readonly { readonly pattern: RegExp; readonly code: RpcCode; readonly remedy: string }[] = [
  {
    pattern: /Could not access KVM kernel module: Permission denied/,
    code: 'EACCES',
    remedy:
      'this user may not open /dev/kvm: usermod -aG kvm USER and log in again, or --accel tcg, many times slower',
  },
  {
    pattern: /Could not access KVM|failed to initialize kvm|KVM is not supported/i,
    code: 'ENODEV',
    remedy: 'qpair host validate tells why there is no KVM here; --accel tcg does without, many times slower',
  },
  {
    // A virtual machine that offers KVM and has not all of it.
    pattern: /failed to set MSR|kvm_\w+: Assertion/,
    code: 'ENODEV',
    remedy: 'KVM of this machine cannot run this QEMU; --accel tcg does without, many times slower',
  },
  {
    pattern: /Failed to get .*lock/,
    code: 'EBUSY',
    remedy:
      'another program has the image open, and two writers would destroy it: end that, or give the disk read-only',
  },
  {
    pattern: /acl file|bridge helper|Operation not permitted.*bridge/i,
    code: 'EPERM',
    remedy:
      'QEMU joins bridges with its helper, which must be told so: add a line "allow BRIDGE" to /etc/qemu/bridge.conf, and, ' +
      'unless the daemon is root, chmod u+s /usr/lib/qemu/qemu-bridge-helper; --network user needs neither',
  },
  {
    pattern: /could not (?:configure|open) \/dev\/net\/tun|tun device/i,
    code: 'EPERM',
    remedy:
      'the interface is busy, or belongs to another user: ip tuntap add dev NAME mode tap user USER makes one for this user',
  },
  {
    pattern: /cannot (?:set up|allocate) guest memory|Cannot allocate memory|unable to map backing store/i,
    code: 'ENOMEM',
    remedy: 'the host has less free memory, or fewer free huge pages, than --memory asks for',
  },
  {
    pattern: /unsupported machine type/i,
    code: 'EINVAL',
    remedy: 'the program lists those it has: qemu-system-x86_64 -machine help',
  },
  {
    pattern: /Unknown (?:driver|protocol)|(?:driver|protocol).* is not supported/i,
    code: 'ENOTSUP',
    remedy:
      'QEMU has that driver in a package of its own: qemu-block-extra (Debian), qemu-block-rbd and others (Fedora, SUSE)',
  },
  {
    pattern: /Could not open .*Permission denied|Permission denied/,
    code: 'EACCES',
    remedy: 'QEMU runs as the user of the daemon',
  },
  {
    pattern: /No such file or directory|could not (?:load|open|find)/i,
    code: 'ENOENT',
    remedy: 'the path is on the machine of the daemon',
  },
  {
    pattern: /Address already in use|Failed to bind/,
    code: 'EADDRINUSE',
    remedy: 'choose another display with --vnc, or the first that is free: --vnc auto',
  },
]

/** `said`: what QEMU has written. */
export function startFailure(name: string, said: string): RpcError {
  const lines = said
    .split('\n')
    .map(line => line.replace(/^[\w./-]*qemu-system-\w+: /, '').trim())
    .filter(line => line !== '' && !line.includes('warning:'))
  const reason = lines.slice(-LINES_MAX).join('; ').replace(/\.$/, '') || 'it ended without a word'
  return qemuFailure(`guest ${name} has not started`, reason)
}

/** What QEMU has refused, with what to do where that is known. */
export function qemuFailure(what: string, reason: string, cause?: Error): RpcError {
  const found = KNOWN.find(({ pattern }) => pattern.test(reason))
  const remedy = found === undefined ? '' : `. ${found.remedy}`
  return new RpcError(found?.code ?? 'EIO', `${what}: ${reason}${remedy}`, { cause })
}

const LINES_MAX = 4

/** KVM was tried and does not work: emulation may. */
export const isKvmFailure = (error: unknown): error is RpcError =>
  error instanceof RpcError && error.code === 'ENODEV' && error.message.includes('--accel tcg')

/** There is no such program on the machine. */
export const noQemu = (program: string, cause: unknown): RpcError =>
  new RpcError(
    'ENOENT',
    `${program} is not on this machine: apt-get install qemu-system-x86 (Debian), dnf install qemu-kvm (Fedora), zypper ` +
      'install qemu-x86 (SUSE)',
    { cause },
  )
