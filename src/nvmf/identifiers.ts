/**
 * Identifiers of a namespace that nobody named: derived from the device's UUID, so that two gateways which serve the
 * same image report the same namespace, and a restart changes nothing.
 */
import { createHash } from 'node:crypto'

export interface NamespaceIdentifiers {
  /** 32 hexadecimal digits, upper case as SPDK prints them. */
  readonly nguid: string
  /** 16 hexadecimal digits, upper case. */
  readonly eui64: string
  /** Lower case. */
  readonly uuid: string
}

export type GivenIdentifiers = { readonly [name in keyof NamespaceIdentifiers]?: string | undefined }

/** What was given, completed. A UUID that was given also decides the others: it is the namespace's name. */
export function namespaceIdentifiers(given: GivenIdentifiers, deviceUuid: string): NamespaceIdentifiers {
  const uuid = (given.uuid ?? deviceUuid).toLowerCase()
  return {
    uuid,
    nguid: (given.nguid ?? uuid.replaceAll('-', '')).toUpperCase(),
    eui64: (given.eui64 ?? eui64Of(uuid)).toUpperCase(),
  }
}

/** 64 bits of a digest, marked as locally administered and not a group address. */
function eui64Of(uuid: string): string {
  const digest = createHash('sha256').update(`eui64 of ${uuid}`).digest()
  digest[0] = (digest[0]! & 0xfc) | 0x02
  return digest.subarray(0, 8).toString('hex')
}

/** A serial number for a subsystem that was given none: the same on every gateway with that name. */
export const serialNumberOf = (nqn: string): string =>
  createHash('sha256').update(`serial number of ${nqn}`).digest('hex').slice(0, 20).toUpperCase()
