import { z } from 'zod'
import { method } from '../../rpc/method.ts'
import type { Notifications } from '../notifications.ts'

export interface NeedsNotifications {
  readonly notifications: Notifications
}

const notifyGetTypes = method({
  name: 'notify_get_types',
  summary: 'Lists the kinds of notification there are.',
  params: z.object({}),
  result: z.array(z.string()),
  run: (_, { notifications }: NeedsNotifications) => [...notifications.types],
})

const notifyGetNotifications = method({
  name: 'notify_get_notifications',
  summary: 'Lists what happened: devices that came and went, jobs that ended.',
  params: z.object({
    id: z.int().min(0).default(0).describe('The first number wanted'),
    max: z.int().min(0).default(Number.MAX_SAFE_INTEGER).describe('How many at most'),
  }),
  result: z.array(z.object({ type: z.string(), ctx: z.string(), id: z.int() })),
  cli: { flags: { id: 'i', max: 'n' }, columns: ['id', 'type', 'ctx'] },
  run: ({ id, max }, { notifications }: NeedsNotifications) => notifications.since(id, max),
})

export const notifyMethods = [notifyGetTypes, notifyGetNotifications]
