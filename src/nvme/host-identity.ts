/** Who this host is to controllers: a name and 128 bits that stay the same over restarts. */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { deriveUuid } from '../bdev/uuid.ts'
import { UUID_NQN_PREFIX } from '../spec/nvmf.ts'

/**
 * The default host NQN: made of the machine's identity (machine-id(5)), and not the kernel's own `/etc/nvme/hostnqn`, so
 * that a target can tell the two hosts on one machine apart.
 */
export function defaultHostNqn(): string {
  return `${UUID_NQN_PREFIX}${deriveUuid('nvme host', machineId())}`
}

/** The host identifier that goes with a host NQN: its UUID where it is made of one. 16 bytes. */
export function hostIdOf(hostnqn: string): Uint8Array {
  const hex = hostnqn.startsWith(UUID_NQN_PREFIX)
    ? hostnqn.slice(UUID_NQN_PREFIX.length).replaceAll('-', '')
    : ''
  if (/^[0-9a-f]{32}$/i.test(hex)) return new Uint8Array(Buffer.from(hex, 'hex'))
  return new Uint8Array(createHash('sha256').update(hostnqn).digest().subarray(0, 16))
}

function machineId(): string {
  for (const path of ['/etc/machine-id', '/var/lib/dbus/machine-id']) {
    try {
      const id = readFileSync(path, 'utf8').trim()
      if (id !== '') return id
    } catch {
      // Containers often have none; then the host's name has to do.
    }
  }
  return hostname()
}
