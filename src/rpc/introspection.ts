/** Methods about methods, made from the table itself. */
import { z } from 'zod'
import { RpcError } from '../core/errors.ts'
import type { RpcInfo } from './dispatcher.ts'
import { type AnyMethod, method } from './method.ts'

export interface NeedsRpc {
  readonly rpc: RpcInfo
}

export const rpcGetMethods = method({
  name: 'rpc_get_methods',
  summary: 'Lists the methods.',
  params: z.object({
    current: z.boolean().default(false).describe('Only those that may be called now'),
    include_aliases: z.boolean().default(false).describe('Older names too'),
  }),
  result: z.array(z.string()),
  state: 'any',
  cli: { flags: { current: 'c', include_aliases: 'i' }, commands: ['methods'] },
  run({ current, include_aliases }, { rpc }: NeedsRpc) {
    const callable = rpc.methods.filter(({ state }) => !current || state === 'any' || state === rpc.state)
    return callable.flatMap(({ name, aliases }) => (include_aliases ? [name, ...aliases] : [name]))
  },
})

export const rpcDiscover = method({
  name: 'rpc.discover',
  summary: 'Describes every method as an OpenRPC document, with JSON Schemas of parameters and results.',
  params: z.object({}),
  result: z.record(z.string(), z.unknown()),
  state: 'any',
  concurrent: true,
  cli: { commands: ['discover'] },
  run: (_, { rpc }: NeedsRpc) => openRpc(rpc.methods),
})

export const introspectionMethods = [rpcGetMethods, rpcDiscover]

/** An OpenRPC 1.3 document (spec.open-rpc.org). */
export function openRpc(methods: RpcInfo['methods']): Record<string, unknown> {
  return {
    openrpc: '1.3.2',
    info: { title: 'qpair', version: '1', license: { name: 'Apache-2.0' } },
    methods: methods.map(describe),
  }
}

function describe(declared: AnyMethod<never>): Record<string, unknown> {
  const schema = paramsSchema(declared)
  return {
    name: declared.name,
    summary: declared.summary,
    paramStructure: 'by-name',
    params: Object.entries(schema.properties).map(([name, property]) => ({
      name,
      summary: property.description ?? '',
      required: schema.required.includes(name),
      schema: property,
    })),
    result: { name: 'result', schema: jsonSchema(declared.result, 'output') },
    errors: Object.entries(declared.errors).map(([code, when]) => ({
      // Every key of `errors` is a code that RpcError takes.
      code: new RpcError(code as keyof typeof declared.errors, '').number,
      message: when,
      data: code,
    })),
    'x-state': declared.state,
    'x-saves': declared.saves,
    'x-aliases': declared.aliases,
  }
}

/** The JSON Schema of one parameter or result, as far as this code looks into it. */
export interface JsonSchema {
  readonly type?: string
  readonly description?: string
  readonly default?: unknown
  readonly enum?: readonly unknown[]
  readonly const?: unknown
  readonly minimum?: number
  readonly maximum?: number
  readonly pattern?: string
  readonly format?: string
  readonly items?: JsonSchema
  readonly properties?: Readonly<Record<string, JsonSchema>>
  readonly required?: readonly string[]
  readonly additionalProperties?: boolean | JsonSchema
  readonly anyOf?: readonly JsonSchema[]
  /** The daemon itself gives it, when it repeats a call: no help or completion names it. */
  readonly internal?: boolean
}

/** What a method takes, each parameter by its name. */
export function paramsSchema({ params }: Pick<AnyMethod<never>, 'params'>): {
  readonly properties: Readonly<Record<string, JsonSchema>>
  readonly required: readonly string[]
} {
  const { properties = {}, required = [] } = jsonSchema(params, 'input')
  return { properties, required }
}

export function jsonSchema(schema: z.ZodType, io: 'input' | 'output'): JsonSchema {
  // What JSON Schema cannot say (a transformed text) may be anything in its output.
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { io, unrepresentable: 'any', reused: 'inline' })
  return rest as JsonSchema
}
