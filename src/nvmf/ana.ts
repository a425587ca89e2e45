/** Asymmetric Namespace Access (Base specification 2.1, section 8.1.1): which paths to a namespace may be used. */
import { AnaState } from '../spec/nvme-log.ts'
import { Status } from '../spec/nvme-status.ts'

/** The states that can be set, as they are called in RPCs. */
export const ANA_STATE_NAMES = ['optimized', 'non_optimized', 'inaccessible'] as const
export type AnaStateName = (typeof ANA_STATE_NAMES)[number]

const BY_NAME: Record<AnaStateName, AnaState> = {
  optimized: AnaState.OPTIMIZED,
  non_optimized: AnaState.NON_OPTIMIZED,
  inaccessible: AnaState.INACCESSIBLE,
}

export const anaStateOf = (name: AnaStateName): AnaState => BY_NAME[name]

export function anaStateName(state: number): AnaStateName {
  if (state === AnaState.OPTIMIZED) return 'optimized'
  return state === AnaState.NON_OPTIMIZED ? 'non_optimized' : 'inaccessible'
}

/** What every I/O gets in that state: `SUCCESS` means that it is executed. */
export const anaGate = (state: number): number =>
  state === AnaState.INACCESSIBLE ? Status.ANA_INACCESSIBLE : Status.SUCCESS
