/** Checks a request's parameters against their declaration, and says in one sentence what is wrong with them. */
import type { z } from 'zod'
import { RpcError } from '../core/errors.ts'
import { didYouMean } from './closest.ts'
import type { AnyMethod } from './method.ts'
import { isSecret } from './without-secrets.ts'

type Declared = Pick<AnyMethod<never>, 'name' | 'params' | 'relaxed' | 'ignored'>
type Issue = z.core.$ZodIssue

/** Problems told at once; more would bury the first. */
const ISSUES_MAX = 3
const VALUE_LENGTH_MAX = 80

/** The parameters as `run` takes them, defaults filled in. Throws INVALID_PARAMS. */
export function parseParams(method: Declared, params: unknown): Record<string, unknown> {
  const given = params === undefined ? {} : withoutNulls(params)
  if (!isObject(given)) {
    throw new RpcError('INVALID_PARAMS', `${method.name}: params must be an object, not ${show(given)}`)
  }
  const known: Record<string, unknown> = {}
  for (const [name, value] of Object.entries(given)) {
    if (Object.hasOwn(method.params.shape, name)) known[name] = value
    else if (!method.relaxed && !method.ignored.includes(name)) throw unknownParam(method, name)
  }
  const cutShort = pathOfNul(known)
  if (cutShort !== undefined) {
    throw new RpcError('INVALID_PARAMS', `${method.name}: ${cutShort} has a NUL character, which no text may`)
  }
  const parsed = method.params.safeParse(known, { reportInput: true })
  if (parsed.success) return parsed.data
  const issues = withoutLooser(parsed.error.issues)
  const more = issues.length > ISSUES_MAX ? `; and ${issues.length - ISSUES_MAX} more` : ''
  const said = issues.slice(0, ISSUES_MAX).map(explain).join('; ')
  throw new RpcError('INVALID_PARAMS', `${method.name}: ${said}${more}`)
}

/**
 * The kernel, librbd and SPDK end a text at a NUL: a name with one would be another name to them than to us. Undefined when
 * there is none.
 */
function pathOfNul(value: unknown, path = ''): string | undefined {
  if (typeof value === 'string') return value.includes('\0') ? path : undefined
  if (typeof value !== 'object' || value === null) return undefined
  for (const [name, member] of Object.entries(value)) {
    if (name.includes('\0')) return `a member of ${path || 'params'}`
    const found = pathOfNul(member, path === '' ? name : `${path}.${name}`)
    if (found !== undefined) return found
  }
  return undefined
}

function unknownParam(method: Declared, name: string): RpcError {
  const names = Object.keys(method.params.shape)
  const takes = names.length === 0 ? 'it takes none' : `it takes ${names.join(', ')}`
  const hint = didYouMean(name, names) || `; ${takes}`
  return new RpcError('INVALID_PARAMS', `${method.name}: there is no parameter ${cut(name)}${hint}`)
}

/** A declaration with several bounds has an issue for each that a value is beyond: the tightest stands for all of them. */
function withoutLooser(issues: readonly Issue[]): Issue[] {
  const kept = new Map<unknown, Issue>()
  for (const issue of issues) {
    const isBound = issue.code === 'too_big' || issue.code === 'too_small'
    const key = isBound ? `${issue.code} ${issue.path.map(String).join('.')}` : issue
    const other = kept.get(key)
    if (other === undefined || isTighter(issue, other)) kept.set(key, issue)
  }
  return [...kept.values()]
}

function isTighter(a: Issue, b: Issue): boolean {
  if (a.code === 'too_big' && b.code === 'too_big') return a.maximum < b.maximum
  return a.code === 'too_small' && b.code === 'too_small' && a.minimum > b.minimum
}

function explain(issue: Issue): string {
  const path = issue.path.map(String).join('.') || 'params'
  const value = issue.input
  const not = isSecret(path) ? '' : `, not ${show(value)}`
  if (value === undefined && issue.code !== 'custom') return `${path} is required`
  switch (issue.code) {
    case 'invalid_type':
      return `${path} must be ${typeName(issue.expected)}${not}`
    case 'invalid_value':
      return `${path} must be ${issue.values.map(allowed => show(allowed)).join(' or ')}${not}`
    case 'too_small':
      return `${path} must ${bound('at least', issue.minimum, issue.origin)}${not}`
    case 'too_big':
      return `${path} must ${bound('at most', issue.maximum, issue.origin)}${not}`
    case 'not_multiple_of':
      return `${path} must be a multiple of ${issue.divisor}${not}`
    case 'unrecognized_keys':
      return `there is no parameter ${issue.keys.map(key => cut([...issue.path, key].join('.'))).join(', ')}`
    case 'invalid_union':
      return `${path} must be ${alternatives(issue)}${not}`
    default:
      // The declaration's own words, of a pattern or a condition.
      return `${path}: ${issue.message}${not}`
  }
}

function bound(relation: string, limit: number | bigint, origin: string): string {
  if (origin === 'string') return `have ${relation} ${limit} characters`
  if (origin === 'array' || origin === 'set') return `have ${relation} ${limit} elements`
  return `be ${relation} ${limit}`
}

function alternatives(issue: Issue & { code: 'invalid_union' }): string {
  const types = issue.errors.flatMap(branch =>
    branch.flatMap(inner => (inner.code === 'invalid_type' ? [typeName(inner.expected)] : [])),
  )
  return types.length === 0 ? 'of another form' : [...new Set(types)].join(' or ')
}

const TYPE_NAMES: Record<string, string> = {
  int: 'a whole number',
  number: 'a number',
  string: 'a string',
  boolean: 'true or false',
  object: 'an object',
  record: 'an object',
  array: 'an array',
}

const typeName = (expected: string): string => TYPE_NAMES[expected] ?? expected

/** A value as the operator wrote it, cut to what fits into a line. */
function show(value: unknown): string {
  return cut(JSON.stringify(value) ?? 'nothing')
}

const cut = (text: string): string =>
  text.length > VALUE_LENGTH_MAX ? `${text.slice(0, VALUE_LENGTH_MAX)}…` : text

/** Some clients write null for what was not given (the Ceph gateway's `config`), so null members are left out. */
function withoutNulls(value: unknown): unknown {
  if (!isObject(value)) return value
  const kept = Object.entries(value).filter(([, member]) => member !== null)
  return Object.fromEntries(kept.map(([name, member]) => [name, withoutNulls(member)]))
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)
