/**
 * Messages between the control thread and a reactor. Bodies are plain data, cloned on the way. Messages of one port
 * arrive in the order in which they were posted.
 */
export interface Port {
  /** Sends and forgets. */
  post(topic: string, body: unknown): void
  /** Sends, and resolves with what the other side's listener returned, or rejects with what it threw. */
  call<T = unknown>(topic: string, body: unknown): Promise<T>
  /** Listens to a topic; there is one listener a topic. Its result answers a `call`. */
  on<T = unknown>(topic: string, listener: (body: T) => unknown): void
}
