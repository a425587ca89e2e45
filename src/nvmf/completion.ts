/** The usual answers to a command of the admin queue. */

import { Status } from '../spec/nvme-status.ts'
import type { Completion } from './request.ts'

export const SUCCESS: Completion = { status: Status.SUCCESS }

export const succeed = (data: Uint8Array): Completion => ({ status: Status.SUCCESS, data })

export const answer = (dw0: number): Completion => ({ status: Status.SUCCESS, dw0 })

/** For what will be refused in the same way however often it is tried. */
export const refuse = (status: number): Completion => ({ status, doNotRetry: true })
