/** NVMe Qualified Names (Base specification 2.1, section 4.7), checked as strictly as SPDK checks them. */
import { DISCOVERY_NQN, NQN_LENGTH_MAX, UUID_NQN_PREFIX } from '../spec/nvmf.ts'

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i
const LABEL = /^[a-z]([a-z0-9-]*[a-z0-9])?$/i
const LABEL_LENGTH_MAX = 63

/** What is wrong with a name, as the end of a sentence, or undefined when it is well formed. */
export function nqnFault(nqn: string): string | undefined {
  const length = Buffer.byteLength(nqn)
  if (length > NQN_LENGTH_MAX) return `has ${length} bytes, more than ${NQN_LENGTH_MAX}`
  if (nqn === DISCOVERY_NQN) return undefined
  if (nqn.startsWith(UUID_NQN_PREFIX)) {
    return UUID.test(nqn.slice(UUID_NQN_PREFIX.length)) ? undefined : `has no UUID after "${UUID_NQN_PREFIX}"`
  }
  const date = /^nqn\.(\d{4})-(\d{2})\./.exec(nqn)
  if (date === null) return 'does not begin with "nqn." and a year and month such as "nqn.2014-08."'
  const colon = nqn.indexOf(':')
  if (colon < 0 || colon === nqn.length - 1) return 'has no ":" followed by a name after the domain'
  const domain = nqn.slice(date[0].length, colon)
  for (const label of domain.split('.')) {
    if (label.length > LABEL_LENGTH_MAX || !LABEL.test(label)) {
      return `has "${label}" in its reversed domain name, where a label begins with a letter and has letters, digits and "-"`
    }
  }
  return undefined
}

/** The well-formed name nearest to what people get wrong, for messages. */
export const NQN_EXAMPLE = 'nqn.2016-06.io.example:disk1'
