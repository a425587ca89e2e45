/** What serves disks is taken away once QEMU has let go of them: the daemon learns of that a moment after QEMU has done it. */
import { setTimeout as delay } from 'node:timers/promises'
import { nameOf } from '../../libvirt/domain-xml.ts'
import { diskOf } from '../disk/server-images.ts'
import { type ReleaseParts, release, type ServingParts, servedName } from '../disk/serving.ts'
import type { RecordedDisk } from './guest-record.ts'

/** How long the end of a connection may take to be noticed. */
const NOTICE_MS = 10_000
const POLL_MS = 20

/** Waits until no front end of the guest's is connected for these disks. What is still connected then, its controller names. */
export async function untilDisconnected(
  guest: string,
  targets: readonly string[],
  { vhost }: Pick<ServingParts, 'vhost'>,
): Promise<void> {
  const names = targets.map(target => servedName(guest, target))
  const deadlineMs = performance.now() + NOTICE_MS
  while (vhost.list().some(({ name, sessionCount }) => names.includes(name) && sessionCount > 0)) {
    if (performance.now() > deadlineMs) return
    await delay(POLL_MS)
  }
}

/** Answers what was taken away. */
export async function releaseDisk(
  guest: string,
  { target, source }: Pick<RecordedDisk, 'target' | 'source'>,
  parts: ReleaseParts,
): Promise<string[]> {
  await untilDisconnected(guest, [target], parts)
  parts.images.letGo(diskOf('guest', guest, target))
  return release(guest, target, nameOf(source), parts)
}
