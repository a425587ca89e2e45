/**
 * Asynchronous events (Base specification 2.1, section 5.1.2): the host leaves requests with the controller, which
 * completes one when it has something to say.
 *
 *   event --> masked by the host's configuration? dropped
 *         --> told before and its log page not read yet? dropped: the log page will tell
 *         --> a request is there? completed : kept until one comes
 */

import { Sqe } from '../../spec/nvme.ts'
import { EventResult, EventType, NoticeEvent, OptionalEvent } from '../../spec/nvme-event.ts'
import { LogPageId } from '../../spec/nvme-log.ts'
import { Status } from '../../spec/nvme-status.ts'
import { refuse } from '../completion.ts'
import type { CommandRequest } from '../request.ts'

/** Requests a host may leave, at most. */
export const ASYNC_EVENT_REQUESTS_MAX = 4

interface Notice {
  readonly info: number
  readonly lid: number
  /** The bit of the Asynchronous Event Configuration feature that lets it through. */
  readonly enabledBy: number
}

export const Notices = {
  NAMESPACES: {
    info: NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED,
    lid: LogPageId.CHANGED_NAMESPACES,
    enabledBy: OptionalEvent.NAMESPACE_ATTRIBUTE,
  },
  ANA: { info: NoticeEvent.ANA_CHANGE, lid: LogPageId.ANA, enabledBy: OptionalEvent.ANA_CHANGE },
  DISCOVERY: {
    info: NoticeEvent.DISCOVERY_LOG_CHANGE,
    lid: LogPageId.DISCOVERY,
    enabledBy: OptionalEvent.DISCOVERY_LOG,
  },
} as const satisfies Record<string, Notice>

export class AsyncEvents {
  /** The Asynchronous Event Configuration feature. */
  configuration: number
  /** The host has left a request since the controller was made. */
  wasAsked = false
  readonly #requests: CommandRequest[] = []
  /** Events for which no request was there. */
  readonly #waiting: Notice[] = []
  /** Log pages that the host was told of and has not read. */
  readonly #told = new Set<number>()

  constructor(configuration: number) {
    this.configuration = configuration
  }

  /** An Asynchronous Event Request. */
  add(request: CommandRequest): void {
    this.wasAsked = true
    if (this.#requests.length >= ASYNC_EVENT_REQUESTS_MAX) {
      request.complete(refuse(Status.ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED))
      return
    }
    this.#requests.push(request)
    this.#tell()
  }

  notify(notice: Notice): void {
    if ((this.configuration & notice.enabledBy) === 0) return
    if (this.#told.has(notice.lid) || this.#waiting.includes(notice)) return
    this.#waiting.push(notice)
    this.#tell()
  }

  /** The host has read a log page and did not ask to retain the event. */
  logPageRead(lid: number): void {
    this.#told.delete(lid)
    const index = this.#waiting.findIndex(notice => notice.lid === lid)
    if (index >= 0) this.#waiting.splice(index, 1)
  }

  /** Aborts the request with that command identifier, if it is here. */
  abort(cid: number): boolean {
    const index = this.#requests.findIndex(request => Sqe.cid.get(request.sqe, 0) === cid)
    if (index < 0) return false
    this.#requests.splice(index, 1)[0]!.complete({ status: Status.ABORTED_BY_REQUEST })
    return true
  }

  /** A controller reset: the host forgets its requests and starts anew. */
  reset(configuration: number): void {
    for (const request of this.#requests.splice(0)) {
      request.complete({ status: Status.ABORTED_SQ_DELETION })
    }
    this.forget()
    this.configuration = configuration
  }

  /** The connection is over, and with it the requests. */
  forget(): void {
    this.#requests.length = 0
    this.#waiting.length = 0
    this.#told.clear()
  }

  #tell(): void {
    while (this.#requests.length > 0 && this.#waiting.length > 0) {
      const notice = this.#waiting.shift()!
      this.#told.add(notice.lid)
      const result = new DataView(new ArrayBuffer(EventResult.size))
      EventResult.type.set(result, 0, EventType.NOTICE)
      EventResult.info.set(result, 0, notice.info)
      EventResult.lid.set(result, 0, notice.lid)
      this.#requests.shift()!.complete({ status: Status.SUCCESS, dw0: result.getUint32(0, true) })
    }
  }
}
