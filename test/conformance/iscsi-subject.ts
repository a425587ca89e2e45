/** A disk of the iscsi driver, whose target is the test's own. */
import { IscsiDisks } from '../../src/bdev/drivers/iscsi/disks.ts'
import { serveIscsi } from '../../src/bdev/drivers/iscsi/driver.ts'
import { libiscsi } from '../../src/sys/libiscsi.ts'
import { Target } from '../bdev/drivers/iscsi/target.ts'
import { BLOCK_COUNT, BLOCK_SIZE, type Subject } from './subjects.ts'

/** Why the driver cannot be had on this machine. */
export function whyNoIscsi(): string | undefined {
  try {
    libiscsi()
    return undefined
  } catch (error) {
    return (error as Error).message
  }
}

export const iscsiSubject: Subject = {
  name: 'iscsi',
  absent: whyNoIscsi(),
  async create({ bdevs, reactors, atEnd }) {
    const target = new Target(BLOCK_COUNT, BLOCK_SIZE)
    await target.listen()
    atEnd(() => target.close())
    for (const reactor of reactors.reactors) serveIscsi(reactor)
    const disks = new IscsiDisks(bdevs, reactors)
    return (
      await disks.create({ name: 'subject', initiator: 'iqn.2026-01.test.qpair:host', url: target.url })
    ).name
  },
}
