/**
 * The one declaration of a JSON-RPC method. Validation, command line, reference pages and `rpc.discover` are derived
 * from it, so nothing about a method is written down twice.
 *
 *     export const bdevMethods = [bdevGetBdevs, bdevResize]                            // a layer's own list
 *     export const methods = [...bdevMethods, ...nvmfMethods] satisfies MethodTable<AppContext>   // the application's
 *
 * The last line is where TypeScript checks that the application provides what every `run` asks for.
 */
import type { z } from 'zod'
import { assert } from '../core/assert.ts'
import type { RpcCode } from '../core/errors.ts'

/** `startup`: only before `framework_start_init`; `runtime`: only after it; `any`: both. */
export type MethodState = 'startup' | 'runtime' | 'any'

/** How a parameter is spelled on the command line: one letter is short (`-t`), more are long (`--user`). */
export type Spelling = string | readonly string[]

/**
 * A switch that some client spells the other way round has its letters under `off`: `-o` means `c2h_success: false`.
 * For an ignored parameter this form says that it is a switch; the plain form, that it has a value.
 */
export type FlagSpelling = Spelling | { readonly on?: Spelling; readonly off?: Spelling }

/** A parameter's name, or the dotted path of a member of an object parameter: `listen_address.traddr`. */
export type ParamPath<Params extends z.ZodObject> =
  | (keyof z.input<Params> & string)
  | `${keyof z.input<Params> & string}.${string}`

/** A column of the table that a terminal shows: a dotted path into a row, or a title and how to get its value. */
export type Column<Row> = string | { readonly title: string; readonly value: (row: Row) => unknown }

/** A word that SPDK's `rpc.py` takes in place of a parameter: `total_size` in MiB, where the method wants blocks. */
export interface ComputedWord<Path extends string> {
  readonly summary: string
  /** The parameter that is sent instead. */
  readonly param: Path
  /** Its value, from the word and from the parameters that were given beside it. */
  readonly compute: (word: number, params: Readonly<Record<string, unknown>>) => unknown
}

/** The command line of a method. Whatever is not said here follows from the parameters: `--max-queue-depth`. */
export interface CliOptions<
  Path extends string,
  Row,
  Word extends string = never,
  Ignored extends string = never,
> {
  /** Parameters that are also taken by position, in this order. */
  readonly positional?: readonly (Path | NoInfer<Word>)[]
  /** The letters that SPDK's `rpc.py` has, and its long spellings where they are not the parameter's name. */
  readonly flags?: { readonly [path in Path | NoInfer<Ignored>]?: FlagSpelling }
  readonly computed?: { readonly [word in Word]: ComputedWord<Path> }
  /** What to show on a terminal instead of JSON. */
  readonly columns?: readonly Column<Row>[]
  /** Where a table would not do: what to show on a terminal, as text, also of a method that only says that it is done. */
  readonly text?: (result: Row, params: Readonly<Record<string, unknown>>) => string
  /** The text has lines to copy: an end of line that is put into one, where a terminal is narrow, would make two of them. */
  readonly keepsLines?: true
  /** Shorter commands beside the derived one: `bdev list` for `bdev_get_bdevs`. */
  readonly commands?: readonly string[]
  /** The number of the job that the method starts or tells of: the command line follows it until it ends. */
  readonly job?: (result: Row) => number | undefined
  /** Text parameters that are documents: the word on the command line is the file that has one, `-` for stdin. */
  readonly files?: readonly Path[]
}

/** What one row of a result is: an element when the result is an array. */
export type RowOf<Result extends z.ZodType> =
  z.output<Result> extends readonly (infer Row)[] ? Row : z.output<Result>

/** What the author of a method writes. */
export interface MethodOptions<
  Name extends string,
  Params extends z.ZodObject,
  Result extends z.ZodType,
  Context,
  Word extends string = never,
  Ignored extends string = never,
> {
  readonly name: Name
  /** One sentence for help, reference and discovery. */
  readonly summary: string
  /**
   * Unknown members are refused at the top level whatever kind of object this is; make objects inside it
   * `z.strictObject`. A member that is null counts as absent, since some clients send null for what was not given.
   */
  readonly params: Params
  readonly result: Result
  /** Each error that `run` throws on purpose, with the condition. Bad parameters are always INVALID_PARAMS. */
  readonly errors?: { readonly [code in RpcCode]?: string }
  /** `runtime` when absent. */
  readonly state?: MethodState
  /** Unknown parameters are ignored, as SPDK does in a few methods, instead of refused. */
  readonly relaxed?: true
  /** Parameters of older SPDK versions that clients still send and that mean nothing here: accepted and dropped. */
  readonly ignored?: readonly Ignored[]
  /** It changes the saved configuration: the answer is sent only after that has been written. */
  readonly saves?: true
  /**
   * Methods run one at a time, except those which may run beside others because they only read or only wait. By
   * default these are the ones with the word `get`, `list` or `wait` in their name. Set it for a method that may
   * take long and protects its own state, such as connecting to a peer.
   */
  readonly concurrent?: boolean
  /** Older names of the method. */
  readonly aliases?: readonly string[]
  readonly cli?: CliOptions<ParamPath<Params>, RowOf<Result>, Word, Ignored>
  /** Names in the type of `context` what it needs, and no more; throws `RpcError` to refuse. */
  readonly run: (params: z.output<Params>, context: Context) => z.input<Result> | Promise<z.input<Result>>
}

/** A declared method with all its types, from which a typed client is derived. */
export interface Method<Name extends string, Params extends z.ZodObject, Result extends z.ZodType, Context>
  extends AnyMethod<Context> {
  readonly name: Name
  readonly params: Params
  readonly result: Result
  readonly run: (params: z.output<Params>, context: Context) => z.input<Result> | Promise<z.input<Result>>
}

/** A method as server, command line and reference see it: what it takes is checked by `params`, not by the compiler. */
export interface AnyMethod<Context> {
  readonly name: string
  readonly summary: string
  readonly params: z.ZodObject
  readonly result: z.ZodType
  readonly errors: { readonly [code in RpcCode]?: string }
  readonly state: MethodState
  readonly relaxed: boolean
  readonly ignored: readonly string[]
  readonly saves: boolean
  readonly concurrent: boolean
  readonly aliases: readonly string[]
  readonly cli: CliOptions<string, never, string>
  /** `never` is what makes every method assignable here: only a caller that has parsed `params` may call it. */
  readonly run: (params: never, context: Context) => unknown
}

/** Methods of which each finds in `Context` what it needs. */
export type MethodTable<Context> = readonly AnyMethod<Context>[]

/** A table of declarations that nobody will run: for help, reference and discovery. */
export type Declarations = MethodTable<never>

export function method<
  const Name extends string,
  Params extends z.ZodObject,
  Result extends z.ZodType,
  Context,
  const Word extends string = never,
  const Ignored extends string = never,
>(
  options: MethodOptions<Name, Params, Result, Context, Word, Ignored>,
): Method<Name, Params, Result, Context> {
  const { name, params, cli = {}, ignored = [] } = options
  const has = (path: string): boolean => Object.hasOwn(params.shape, path.split('.', 1)[0]!)
  assert(/^[a-z][a-z0-9_]*(\.[a-z]+)?$/.test(name), `${name} is a method name`)
  const words: string[] = [...Object.keys(cli.computed ?? {}), ...ignored]
  for (const path of [...(cli.positional ?? []), ...(cli.files ?? []), ...Object.keys(cli.flags ?? {})]) {
    assert(has(path) || words.includes(path), `${name} has the parameter ${path} that its command line names`)
  }
  for (const param of ignored) assert(!has(param), `${name} does not both take and ignore ${param}`)
  return {
    name,
    summary: options.summary,
    params,
    result: options.result,
    errors: options.errors ?? {},
    state: options.state ?? 'runtime',
    relaxed: options.relaxed ?? false,
    ignored,
    saves: options.saves ?? false,
    concurrent: options.concurrent ?? /(^|_)(get|list|wait)(_|$)/.test(name),
    aliases: options.aliases ?? [],
    // Widening: whoever shows a table got its rows from this very method.
    cli: cli as CliOptions<string, never, string>,
    run: options.run,
  }
}
