/** The reactors as the control thread sees them. */
import type { Port } from './port.ts'

export interface ReactorGroup {
  readonly count: number
  port(index: number): Port
  /** Calls every reactor and resolves with their answers, in the order of their numbers. */
  broadcast<T = unknown>(topic: string, body: unknown): Promise<T[]>
}
