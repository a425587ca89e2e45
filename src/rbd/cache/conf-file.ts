/**
 * A ceph.conf, read as librados reads it since Ceph 15, with the line of every value:
 *
 *   # comment          ; comment            anywhere, unless escaped; not even quotes protect it
 *   [client.admin]                          begins its line, and is named exactly: "[ client ]" is another one
 *   rbd cache = true                        words apart by blanks or underscores; dashes make another name
 *   key = "quoted"     key = a \            a backslash takes the next character as it is, at the end of a line it
 *         goes on here                      goes on with the next
 *
 * One line that is none of these, an option before the first section, or a last line without an end, and librados
 * refuses the whole file.
 */

export interface ConfValue {
  readonly text: string
  /** From 1. */
  readonly line: number
}

export interface ConfProblem {
  readonly line: number
  /** Behind "line 7 ". */
  readonly reason: string
}

/** librados 16 fails an assertion at such a file, and with it the whole process. */
export const FATAL_REASON = 'has a character that is not ASCII, and is neither comment nor quoted'

const BEFORE_SECTION = 'stands before the first [section]'

const COMMENT = /^\s*[#;]/

export class ConfFile {
  /** Why librados refuses the file, or undefined when it does not. */
  readonly problem: ConfProblem | undefined
  readonly #sections = new Map<string, Map<string, ConfValue>>()
  readonly #lines: readonly string[]

  constructor(text: string) {
    this.#lines = text.split(/\r\n|\n|\r/)
    this.problem = this.#read()
  }

  /** Of several sections the first that has the option; undefined when none has. */
  get(option: string, sections: readonly string[]): ConfValue | undefined {
    for (const section of sections) {
      const value = this.#sections.get(section)?.get(option)
      if (value !== undefined) return value
    }
    return undefined
  }

  /** The names in a section, as librados knows them. */
  names(section: string): string[] {
    return [...(this.#sections.get(section)?.keys() ?? [])]
  }

  #read(): ConfProblem | undefined {
    let section = ''
    // librados takes an option before the first section as global when the file has nothing else.
    let isAlone = false
    // Behind the end of the last line is nothing, or a comment.
    const last = this.#lines.length - 1
    for (let at = 0; at < last; ) {
      const line = this.#lines[at]!
      at++
      if (line === '' || COMMENT.test(line)) continue
      if (line.trim() === '') {
        if (section === '' && !isAlone) return { line: at, reason: `has only blanks and ${BEFORE_SECTION}` }
        continue
      }
      if (isAlone) return { line: 1, reason: BEFORE_SECTION }
      if (isForeign(line.replace(/[#;=].*/, ''))) return { line: at, reason: FATAL_REASON }
      const opened = /^\[([^\]#;\\]+)\]\s*([#;].*)?$/.exec(line)
      if (opened !== null) {
        section = opened[1]!
        continue
      }
      const [, name = '', begin = ''] = /^([^=[#;]+)=(.*)$/.exec(line) ?? []
      if (name.trim() === '') return { line: at, reason: 'is neither "[section]" nor "name = value"' }
      if (section === '') {
        if (at > 1) return { line: at, reason: BEFORE_SECTION }
        isAlone = true
      }
      const value = this.#value(begin, at)
      if (typeof value === 'string') return { line: at, reason: value }
      this.#put(section || 'global', name.trim().replaceAll(/\s+/g, '_'), { text: value.text, line: at })
      at = value.next
    }
    const rest = this.#lines[last]!
    return rest === '' || COMMENT.test(rest)
      ? undefined
      : { line: last + 1, reason: 'has no end: add a newline' }
  }

  /** A value from where it begins and, while lines end in a backslash, from the lines at `next`; or what is wrong. */
  #value(begin: string, next: number): { readonly text: string; readonly next: number } | string {
    let raw = begin
    let at = next
    while (/^(?:[^\\#;]|\\.)*\\$/.test(raw)) {
      if (at >= this.#lines.length - 1) return 'goes on behind the end of the file'
      raw = raw.slice(0, -1) + this.#lines[at]!
      at++
    }
    const bare = /^(?:[^\\#;]|\\.)*/.exec(raw)![0].trim()
    const quote = bare[0]
    if (quote !== '"' && quote !== "'")
      return isForeign(bare) ? FATAL_REASON : { text: unescaped(bare), next: at }
    const quoted = new RegExp(`^${quote}((?:[^\\\\${quote}]|\\\\.)*)${quote}$`).exec(bare)
    return quoted === null ? 'has a quote that does not end' : { text: unescaped(quoted[1]!), next: at }
  }

  #put(section: string, name: string, value: ConfValue): void {
    const values = this.#sections.get(section) ?? new Map<string, ConfValue>()
    values.set(name, value)
    this.#sections.set(section, values)
  }
}

const isForeign = (text: string): boolean => /[^\p{ASCII}]/u.test(text)

const unescaped = (text: string): string => text.replaceAll(/\\(.)/g, '$1')
