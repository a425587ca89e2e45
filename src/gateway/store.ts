/** What members of a group have in common, and the only way they hear of each other: objects of a Ceph pool. */

export interface StoredText {
  readonly text: string
  readonly version: number
}

export interface GroupStore {
  /** This member's Ceph client. */
  readonly instance: string
  /** Undefined when there is no such object. Throws `FencedError` and `StoreError`. */
  read(object: string): Promise<StoredText | undefined>
  /**
   * Replaces what has the version `expected`, or makes what is not there (undefined); false when another was first.
   * Throws `FencedError` and `StoreError`; after the latter it may have been done all the same.
   */
  write(object: string, text: string, expected: number | undefined): Promise<boolean>
  /** Shuts a client out: none of its writes takes effect any more after one of this store's clients has written. */
  fence(instance: string): Promise<void>
  /** From here on this client's writes come after the end of everybody who was shut out before the call. */
  settle(): Promise<void>
}

/** Ceph does not answer, or refuses. */
export class StoreError extends Error {
  override readonly name = 'StoreError'
}

/** This member's own client is shut out. */
export class FencedError extends Error {
  override readonly name = 'FencedError'
}
