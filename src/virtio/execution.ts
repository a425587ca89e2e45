/** A command of the control thread on its way through a virtqueue. */
import type { ExecuteScsi, ScsiAnswer } from './messages.ts'

export interface Execution {
  readonly command: ExecuteScsi
  done(answer: ScsiAnswer): void
  failed(error: Error): void
}
