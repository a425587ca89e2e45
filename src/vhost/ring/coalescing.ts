/**
 * When a busy queue interrupts its guest: as in SPDK (`vhost_controller_set_coalescing`), the more requests it completes
 * above a threshold, the longer an interrupt waits for company.
 *
 *   delay = base * (completed a second - threshold) / threshold, looked at anew every 10 ms
 */
import type { Tuning } from '../messages.ts'

const WINDOW_US = 10_000

export class Coalescing {
  /** An interrupt was held back: somebody asks `mayCall` until it is time. */
  isCallDue = false
  #delayUs = 0
  #lastCallUs = 0
  #windowStartUs = 0
  #windowCount = 0

  /** So many requests were completed. */
  count(completed: number, nowUs: number, { delayBaseUs, iopsThreshold }: Tuning): void {
    if (delayBaseUs === 0) {
      this.#delayUs = 0
      return
    }
    this.#windowCount += completed
    const elapsedUs = nowUs - this.#windowStartUs
    if (elapsedUs < WINDOW_US) return
    const excess = (this.#windowCount * 1e6) / elapsedUs - iopsThreshold
    this.#delayUs = excess > 0 ? (delayBaseUs * excess) / iopsThreshold : 0
    this.#windowStartUs = nowUs
    this.#windowCount = 0
  }

  mayCall(nowUs: number): boolean {
    return this.#delayUs === 0 || nowUs - this.#lastCallUs >= this.#delayUs
  }

  called(nowUs: number): void {
    this.isCallDue = false
    this.#lastCallUs = nowUs
  }
}
