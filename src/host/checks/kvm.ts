/** What guests need of the processor and of /dev/kvm; the first of what `virt-host-validate qemu` looks at. */
import { closeSync, openSync } from 'node:fs'
import { SysError } from '../../core/errors.ts'
import { ioctl } from '../../sys/libc.ts'
import type { Check } from '../finding.ts'
import type { Host } from '../host.ts'

/** The processor's own word for virtualisation, on the architectures that have one, and its kernel module. */
const EXTENSIONS: Readonly<Record<string, readonly { readonly flag: string; readonly module: string }[]>> = {
  x64: [
    { flag: 'vmx', module: 'kvm_intel' },
    { flag: 'svm', module: 'kvm_amd' },
  ],
  s390x: [{ flag: 'sie', module: 'kvm' }],
}

/** A processor with neither word would run guests by emulation only. */
export const hardwareVirtualization: Check = host => {
  const check = 'hardware virtualisation'
  const extensions = EXTENSIONS[host.arch]
  if (extensions === undefined) {
    return { check, level: 'note', found: `${host.arch} has no flag for it: /dev/kvm tells` }
  }
  const flags = host.processorFlags
  const found = extensions.find(({ flag }) => flags.includes(flag))
  if (found !== undefined) return { check, level: 'pass', found: `the processor has ${found.flag}` }
  return {
    check,
    level: 'fail',
    found: `the processor shows no ${extensions.map(({ flag }) => flag).join(' or ')}: guests are emulated, many times slower`,
    remedy: flags.includes('hypervisor')
      ? 'this is a virtual machine: let it nest (options kvm_intel nested=1 or kvm_amd nested=1 on its host, and cpu mode host-passthrough for this guest)'
      : 'switch on VT-x or AMD-V (SVM mode) in the firmware',
  }
}

export const kvmDevice: Check = host => {
  const check = '/dev/kvm'
  if (host.exists('/dev/kvm')) return { check, level: 'pass', found: 'is there' }
  const module = EXTENSIONS[host.arch]?.find(({ flag }) => host.processorFlags.includes(flag))?.module
  return {
    check,
    level: 'fail',
    found: 'is not there: guests run without acceleration',
    remedy:
      module === undefined
        ? 'needs hardware virtualisation, and the kernel module kvm'
        : `modprobe ${module}; in a container, pass the device in`,
  }
}

export const kvmAccess: Check = host => {
  const check = '/dev/kvm access'
  if (!host.exists('/dev/kvm'))
    return { check, level: 'fail', found: 'there is no /dev/kvm', remedy: 'see above' }
  if (host.mayReadAndWrite('/dev/kvm')) return { check, level: 'pass', found: 'may be read and written' }
  return {
    check,
    level: 'fail',
    found: 'forbidden for this user',
    remedy: 'usermod -aG kvm USER, and log in again; or setfacl -m u:USER:rw /dev/kvm until the next boot',
  }
}

/** The two first requests of every user of KVM (Documentation/virt/kvm/api.rst, sections 4.1 and 4.2). */
const KVM_GET_API_VERSION = 0xae00
const KVM_CREATE_VM = 0xae01
const KVM_API_VERSION = 12

/** A device that is there and may be opened can still refuse: another hypervisor has the processor, or nesting is off. */
export const kvmWorks: Check = host => {
  const check = 'KVM'
  if (!host.mayReadAndWrite('/dev/kvm')) {
    return { check, level: 'fail', found: 'cannot be tried without access to /dev/kvm', remedy: 'see above' }
  }
  const fd = openSync(host.path('/dev/kvm'), 'r+')
  try {
    const version = request(fd, 'KVM_GET_API_VERSION', KVM_GET_API_VERSION)
    if (version !== KVM_API_VERSION) {
      const found = `speaks version ${version}, not ${KVM_API_VERSION}`
      return { check, level: 'fail', found, remedy: 'update the kernel' }
    }
    closeSync(request(fd, 'KVM_CREATE_VM', KVM_CREATE_VM))
    return { check, level: 'pass', found: 'makes a virtual machine' }
  } catch (error) {
    if (!(error instanceof SysError)) throw error
    const remedy =
      error.code === 'EBUSY'
        ? 'another hypervisor, such as VirtualBox, has the processor: end it'
        : 'dmesg says why; in a virtual machine, nesting must be on in its host'
    return { check, level: 'fail', found: `refuses a virtual machine: ${error.message}`, remedy }
  } finally {
    closeSync(fd)
  }
}

function request(fd: number, name: string, number: number): number {
  const result = ioctl(fd, number, 0)
  if (result < 0) throw new SysError('ioctl', -result, name)
  return result
}

/** Memory that the machine's owner cannot read: AMD SEV, Intel TDX, IBM secure execution. */
export const secureGuests: Check = host => {
  const check = 'secure guests'
  const isOn = (path: string): boolean => /^[Y1]/.test(host.read(path) ?? '')
  if (isOn('/sys/module/kvm_amd/parameters/sev')) return { check, level: 'pass', found: 'AMD SEV' }
  if (isOn('/sys/module/kvm_intel/parameters/tdx')) return { check, level: 'pass', found: 'Intel TDX' }
  if (isOn('/sys/firmware/uv/prot_virt_host')) return { check, level: 'pass', found: 'secure execution' }
  const remedy = secureRemedy(host)
  return { check, level: 'note', found: 'none', ...(remedy !== undefined && { remedy }) }
}

function secureRemedy(host: Host): string | undefined {
  const flags = host.processorFlags
  if (flags.includes('sev')) return 'the processor has SEV: kvm_amd.sev=1 on the kernel command line'
  if (flags.includes('tdx_host_platform'))
    return 'the processor has TDX: kvm_intel.tdx=1 on the kernel command line'
  return undefined
}
