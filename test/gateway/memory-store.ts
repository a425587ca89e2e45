/** A group's objects in memory. */
import { type GroupStore, type StoredText, StoreError } from '../../src/gateway/store.ts'

export class MemoryStore implements GroupStore {
  readonly instance = 'x'
  readonly objects = new Map<string, StoredText>()
  /** Called before each write: for what others do meanwhile. */
  beforeWrite: () => Promise<void> | void = () => {}
  isBroken = false
  /** Who was shut out. */
  readonly fenced: string[] = []

  async read(object: string): Promise<StoredText | undefined> {
    if (this.isBroken) throw new StoreError('no answer')
    return this.objects.get(object)
  }

  async write(object: string, text: string, expected: number | undefined): Promise<boolean> {
    await this.beforeWrite()
    if (this.isBroken) throw new StoreError('no answer')
    const version = this.objects.get(object)?.version
    if (version !== expected) return false
    this.objects.set(object, { text, version: (version ?? 0) + 1 })
    return true
  }

  async fence(instance: string): Promise<void> {
    this.fenced.push(instance)
  }
  async settle(): Promise<void> {}
}
