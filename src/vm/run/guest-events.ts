/** What QEMU tells of by itself and an operator should hear. */
import { logger } from '../../core/log.ts'
import type { QmpEvent } from '../qmp.ts'
import { textOf } from '../untrusted.ts'

const log = logger('vm')

/** A disk on a file system that is full stops the guest, so that it loses nothing (QEMU, BLOCK_IO_ERROR). */
export function reportEvent(name: string, { event, data }: QmpEvent): void {
  if (event !== 'BLOCK_IO_ERROR' || data['action'] !== 'stop') return
  const disk = textOf(data['node-name'] ?? data['device']).replace(/^disk-/, '')
  const reason =
    data['nospace'] === true ? 'there is no room for its data' : textOf(data['reason'], 'no reason given')
  log.error(
    `guest ${name} stands still, its disk ${disk} has failed to ${textOf(data['operation'], 'work')}: ${reason}. Mend that, and qpair vm resume ` +
      `${name} goes on where it was`,
  )
}
