/** What QEMU tells of by itself and an operator should hear. */
import { logger } from '../../core/log.ts'
import type { QmpEvent } from '../qmp.ts'

const log = logger('vm')

/** A disk on a file system that is full stops the guest, so that it loses nothing (QEMU, BLOCK_IO_ERROR). */
export function reportEvent(name: string, { event, data }: QmpEvent): void {
  if (event !== 'BLOCK_IO_ERROR' || data['action'] !== 'stop') return
  const disk = String(data['node-name'] ?? data['device']).replace(/^disk-/, '')
  const reason = data['nospace'] === true ? 'there is no room for its data' : String(data['reason'])
  log.error(
    `guest ${name} stands still, its disk ${disk} has failed to ${data['operation']}: ${reason}. Mend that, and qpair vm resume ` +
      `${name} goes on where it was`,
  )
}
