/** From one shared configuration to another: which calls take away what is not wanted, and make what is missing. */
import type { MethodCall } from '../rpc/config.ts'
import { foundationsOf, identityOf, thingOf, undoOf } from './shared-calls.ts'

/** The calls, in order, that lead from `have` to `want`. What stays the same is not touched. */
export function planChanges(have: readonly MethodCall[], want: readonly MethodCall[]): MethodCall[] {
  const wanted = new Set(want.map(identityOf))
  const kept = new Set<string>()
  const broken = new Set<string>()
  // Foundations come before what stands on them.
  for (const call of have) {
    const falls = !wanted.has(identityOf(call)) || foundationsOf(call).some(thing => broken.has(thing))
    if (falls) broken.add(thingOf(call))
    else kept.add(thingOf(call))
  }
  const removed = have.filter(call => broken.has(thingOf(call)) && !goesWithAnother(call, broken)).reverse()
  const undone = removed.flatMap(call => undoOf(call) ?? [])
  return [...undone, ...want.filter(call => !kept.has(thingOf(call)))]
}

/** What is part of a subsystem or a namespace that goes; a namespace is taken away before its device. */
function goesWithAnother(call: MethodCall, broken: ReadonlySet<string>): boolean {
  return foundationsOf(call).some(thing => !thing.startsWith('bdev ') && broken.has(thing))
}

/** `base` with what was done between `before` and `after`. */
export function mergeChanges(
  base: readonly MethodCall[],
  before: readonly MethodCall[],
  after: readonly MethodCall[],
): MethodCall[] {
  const was = new Set(before.map(identityOf))
  const is = new Set(after.map(identityOf))
  const stays = base.filter(call => !was.has(identityOf(call)) || is.has(identityOf(call)))
  const added = after.filter(call => !was.has(identityOf(call)))
  // Also what is missing on this member goes with what it stands on.
  const there = new Set([...stays, ...added].map(thingOf))
  const isGrounded = (call: MethodCall): boolean => foundationsOf(call).every(thing => there.has(thing))
  let merged = [...stays, ...added]
  for (
    let grounded = merged.filter(isGrounded);
    grounded.length < merged.length;
    grounded = merged.filter(isGrounded)
  ) {
    for (const call of merged) if (!isGrounded(call)) there.delete(thingOf(call))
    merged = merged.filter(call => there.has(thingOf(call)))
  }
  return merged
}

export function isSame(a: readonly MethodCall[], b: readonly MethodCall[]): boolean {
  const identities = new Set(a.map(identityOf))
  return a.length === b.length && b.every(call => identities.has(identityOf(call)))
}
