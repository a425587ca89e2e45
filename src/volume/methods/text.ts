/** How virsh shows what is known of one thing. */
import { formatSize } from '../../core/format-size.ts'

export const sizeOrDash = (bytes: number | undefined): string =>
  bytes === undefined ? '-' : formatSize(bytes)

/** `Name:           vms`, a line a fact. */
export const factsText = (facts: readonly (readonly [title: string, value: string])[]): string =>
  facts.map(([title, value]) => `${`${title}:`.padEnd(16)}${value}\n`).join('')
