/** Saved configuration: the calls that bring a daemon to where it is, grouped as SPDK's configuration file groups them. */

/** One call, as it stands in a configuration file. */
export interface MethodCall {
  readonly method: string
  readonly params?: Readonly<Record<string, unknown>>
}

/** A part of the application that has state to save. */
export interface Configurable {
  /** As in `framework_get_subsystems`: `bdev`, `nvmf`, `nbd` … */
  readonly subsystem: string
  /** Subsystems that must be restored before this one. */
  readonly dependsOn: readonly string[]
  /** The calls that would recreate the present state, in order. */
  config(): MethodCall[]
}
