/** What the discovery service tells besides the subsystems: referrals, which listeners it shows, and its change count. */
import { RpcError } from '../core/errors.ts'
import { DISCOVERY_NQN } from '../spec/nvmf.ts'
import { formatTransportAddress, isSameAddress, type TransportAddress } from './address.ts'
import type { DiscoveryFilter, Referral } from './messages.ts'

export class Discovery {
  readonly referrals: Referral[] = []
  filter: DiscoveryFilter = { transport: false, address: false, svcid: false }
  /** Hosts compare it to find out whether the log changed; the first one is not 0, which some take for "never". */
  genctr = 1

  changed(): void {
    this.genctr++
  }

  /** Adding the same again does nothing, as in SPDK. Returns whether something changed. */
  addReferral(address: TransportAddress, subnqn: string = DISCOVERY_NQN, secureChannel = false): boolean {
    if (this.#find(address, subnqn) >= 0) return false
    this.referrals.push({ address, subnqn, secureChannel })
    return true
  }

  removeReferral(address: TransportAddress, subnqn: string = DISCOVERY_NQN): void {
    const index = this.#find(address, subnqn)
    if (index < 0) {
      const others = this.referrals.map(referral => formatTransportAddress(referral.address)).join(', ')
      throw new RpcError(
        'INTERNAL',
        `Unable to remove a referral: there is none to ${formatTransportAddress(address)} ${subnqn}; there is ${others || 'none'}`,
      )
    }
    this.referrals.splice(index, 1)
  }

  #find(address: TransportAddress, subnqn: string): number {
    return this.referrals.findIndex(
      referral => isSameAddress(referral.address, address) && referral.subnqn === subnqn,
    )
  }
}
