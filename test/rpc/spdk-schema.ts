/** SPDK's schema of its methods, and the comparison of a method with it. */
import { existsSync, readFileSync } from 'node:fs'
import { parse } from 'yaml'
import { type JsonSchema, paramsSchema } from '../../src/rpc/introspection.ts'
import type { AnyMethod } from '../../src/rpc/method.ts'
import type { Difference } from './spdk-coverage.ts'

interface SpdkParam {
  readonly name: string
  readonly type: string
  readonly class?: string
  readonly required?: boolean
}

interface SpdkSchema {
  readonly methods: readonly { readonly name: string; readonly params?: readonly SpdkParam[] }[]
  readonly enums: readonly { readonly name: string; readonly fields: readonly { readonly name: string }[] }[]
  readonly objects: readonly { readonly name: string; readonly fields: readonly SpdkParam[] }[]
  readonly arrays: readonly { readonly name: string; readonly item_type: string; readonly class?: string }[]
  readonly bitmasks: readonly { readonly name: string; readonly enum: string }[]
}

/** Undefined where the file is not at hand. */
export function readSpdkSchema(path: string): SpdkSchema | undefined {
  return existsSync(path) ? parse(readFileSync(path, 'utf8')) : undefined
}

type Found = Omit<Difference, 'reason'>

const RANGES: Readonly<Record<string, readonly [min: number, max: number]>> = {
  uint8: [0, 0xff],
  uint16: [0, 0xffff],
  uint32: [0, 0xffff_ffff],
  int32: [-0x8000_0000, 0x7fff_ffff],
  // A JSON number keeps no more digits.
  uint64: [0, Number.MAX_SAFE_INTEGER],
}

/** Where a declared method differs from SPDK's. Parameters that it declares as ignored are taken, and so no difference. */
export function compare(spdk: SpdkSchema, method: AnyMethod<never>): Found[] {
  const theirs = spdk.methods.find(({ name }) => name === method.name)
  if (theirs === undefined) return []
  const { properties, required } = paramsSchema(method)
  const taken = (theirs.params ?? []).filter(
    ({ name }) => !method.ignored.includes(name) || name in properties,
  )
  return compareMembers(spdk, method.name, '', taken, properties, required)
}

function compareMembers(
  spdk: SpdkSchema,
  method: string,
  prefix: string,
  theirs: readonly SpdkParam[],
  ours: Readonly<Record<string, JsonSchema>>,
  required: readonly string[],
): Found[] {
  const names = theirs.map(({ name }) => name)
  const found: Found[] = Object.keys(ours)
    .filter(name => !names.includes(name))
    .map(name => ({ method, param: prefix + name, kind: 'only here' }))
  for (const param of theirs) {
    const path = prefix + param.name
    const schema = ours[param.name]
    if (schema === undefined) {
      throw new Error(`${method} neither takes nor ignores ${path}, which SPDK has`)
    }
    if (param.required === true && !required.includes(param.name)) {
      found.push({ method, param: path, kind: 'not required here' })
    }
    if (param.required !== true && required.includes(param.name)) {
      found.push({ method, param: path, kind: 'required here' })
    }
    found.push(...compareType(spdk, method, path, param, schema))
  }
  return found
}

function compareType(
  spdk: SpdkSchema,
  method: string,
  path: string,
  param: SpdkParam,
  ours: JsonSchema,
): Found[] {
  const other = (kind: Found['kind']): Found[] => [{ method, param: path, kind }]
  switch (param.type) {
    case 'string':
    case 'uuid':
      return ours.type === 'string' ? [] : other('other type')
    case 'boolean':
      return ours.type === 'boolean' ? [] : other('other type')
    case 'enum': {
      if (ours.type !== 'string') return other('other type')
      const values = enumValues(spdk, param.class!)
      return ours.enum === undefined || sameSet(values, ours.enum) ? [] : other('other values')
    }
    case 'bitmask': {
      const types = (ours.anyOf ?? []).map(({ type }) => String(type))
      return sameSet(types, ['array', 'string']) ? [] : other('other type')
    }
    case 'array':
      return compareArray(spdk, method, path, param, ours)
    case 'object': {
      if (ours.type !== 'object') return other('other type')
      // Members by any name: what is in them is checked when they are used.
      if (ours.properties === undefined) return []
      const { fields } = spdk.objects.find(({ name }) => name === param.class)!
      return compareMembers(spdk, method, `${path}.`, fields, ours.properties, ours.required ?? [])
    }
    default: {
      const [min, max] = RANGES[param.type]!
      if (ours.type !== 'integer') return other('other type')
      return ours.minimum! >= min && ours.maximum! <= max ? [] : other('other values')
    }
  }
}

function compareArray(
  spdk: SpdkSchema,
  method: string,
  path: string,
  param: SpdkParam,
  ours: JsonSchema,
): Found[] {
  if (ours.type !== 'array' || ours.items === undefined) return [{ method, param: path, kind: 'other type' }]
  const { item_type, class: itemClass } = spdk.arrays.find(({ name }) => name === param.class)!
  const item = { name: param.name, type: item_type, ...(itemClass === undefined ? {} : { class: itemClass }) }
  return compareType(spdk, method, `${path}[]`, item, ours.items)
}

function enumValues(spdk: SpdkSchema, name: string): string[] {
  return spdk.enums.find(each => each.name === name)!.fields.map(field => String(field.name))
}

const sameSet = (a: readonly unknown[], b: readonly unknown[]): boolean =>
  a.length === b.length && a.every(value => b.includes(value))
