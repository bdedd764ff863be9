import { END, type Piece } from './piece.js'
import { RowError } from './row-error.js'

/**
 * A message of Open Assistant. Every field but id, text and role may be null or absent in the files; here absent ones
 * are undefined. Source: LAION-AI/Open-Assistant, oasst-data/oasst_data/schemas.py.
 */
export interface OasstMessage {
  messageId: string
  parentId?: string
  text: string
  role: 'prompter' | 'assistant'
  lang?: string
  /** 0 is the best among siblings. */
  rank?: number
  deleted?: boolean
  synthetic?: boolean
  reviewResult?: boolean
  treeId?: string
  treeState?: string
  replies: OasstMessage[]
}

type Row = Record<string, unknown>

/** Whether a row is a message, a thread or a tree of Open Assistant. */
export function isOasstRow(row: unknown): row is Row {
  if (typeof row !== 'object' || row === null || Array.isArray(row)) return false
  const { message_id, role, thread_id, thread, message_tree_id, prompt } = row as Row
  if (message_id !== undefined) return role !== undefined
  if (thread_id !== undefined) return thread !== undefined
  return message_tree_id !== undefined && prompt !== undefined
}

/**
 * Turns rows into conversation threads, each from its root to a leaf, depth-first. Messages with their replies nested,
 * trees and threads are turned at once; a flat message (no `replies`) waits until {@link finish}, which builds the trees
 * by id, because its replies may come in any order.
 */
export class OasstReader {
  readonly #flat = new Map<string, { message: OasstMessage; line: number }>()

  /** The threads that `row` completes. Throws RowError for a row with a wrong or missing field. */
  add(row: Row, line: number): OasstMessage[][] {
    if (row.message_id !== undefined) {
      if (Array.isArray(row.replies)) return threadsOf(parseMessage(row))
      const message = parseMessage(row)
      if (this.#flat.has(message.messageId)) throw new RowError(`message ${message.messageId} comes twice`)
      this.#flat.set(message.messageId, { message, line })
      return []
    }
    if (row.thread_id !== undefined) {
      if (!Array.isArray(row.thread) || row.thread.length === 0)
        throw new RowError('field "thread" is not a list of messages')
      return [row.thread.map(parseMessage)]
    }
    // A tree whose prompt is null holds nothing.
    return row.prompt === null ? [] : threadsOf(parseMessage(row.prompt))
  }

  /** The threads of the flat messages, in the order of their roots, and the messages that belong to no tree. */
  finish(): { threads: OasstMessage[][]; orphans: { line: number; reason: string }[] } {
    const roots: OasstMessage[] = []
    const reached = new Set<OasstMessage>()
    for (const { message } of this.#flat.values()) {
      if (message.parentId === undefined) roots.push(message)
      else this.#flat.get(message.parentId)?.message.replies.push(message)
    }
    const threads = roots.flatMap(threadsOf)
    for (const thread of threads) for (const message of thread) reached.add(message)
    const orphans: { line: number; reason: string }[] = []
    for (const { message, line } of this.#flat.values()) {
      if (!reached.has(message))
        orphans.push({ line, reason: `message ${message.messageId} hangs on no root (parent ${message.parentId})` })
    }
    this.#flat.clear()
    return { threads, orphans }
  }
}

/** All paths from `root` to a leaf, depth-first. */
export function threadsOf(root: OasstMessage): OasstMessage[][] {
  const threads: OasstMessage[][] = []
  const path: OasstMessage[] = []
  const waiting: { message: OasstMessage; depth: number }[] = [{ message: root, depth: 0 }]
  for (let top = waiting.pop(); top; top = waiting.pop()) {
    path.length = top.depth
    path.push(top.message)
    const { replies } = top.message
    if (replies.length === 0) threads.push([...path])
    for (let i = replies.length - 1; i >= 0; i--) waiting.push({ message: replies[i], depth: top.depth + 1 })
  }
  return threads
}

/**
 * A thread as a document. With role tokens, Open Assistant's own template: `<|prompter|>TEXT` or `<|assistant|>TEXT`,
 * each followed by end-of-text (model_training/custom_datasets/formatting.py). Otherwise plain text: `User: TEXT` and
 * `Assistant: TEXT`, a blank line between messages.
 */
export function* threadPieces(thread: readonly OasstMessage[], roleTokens: boolean): Generator<Piece> {
  if (!roleTokens) {
    const lines = thread.map(({ role, text }) => `${role === 'prompter' ? 'User' : 'Assistant'}: ${text}`)
    yield { kind: 'text', text: lines.join('\n\n') }
  } else {
    for (const { role, text } of thread) {
      yield { kind: 'special', text: `<|${role}|>` }
      yield { kind: 'text', text }
      yield { kind: 'eos' }
    }
  }
  yield END
}

/** A message and, without recursion, all below it. Throws RowError. */
function parseMessage(value: unknown): OasstMessage {
  const root = parseOne(value)
  const waiting: { row: Row; message: OasstMessage }[] = [{ row: value as Row, message: root }]
  for (let top = waiting.pop(); top; top = waiting.pop()) {
    const { replies } = top.row
    if (replies === undefined || replies === null) continue
    if (!Array.isArray(replies)) throw new RowError(`message ${top.message.messageId}: field "replies" is not a list`)
    for (const row of replies) {
      const message = parseOne(row)
      top.message.replies.push(message)
      waiting.push({ row: row as Row, message })
    }
  }
  return root
}

function parseOne(value: unknown): OasstMessage {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new RowError('a message is not an object')
  const row = value as Row
  const { message_id: id, text, role } = row
  if (typeof id !== 'string') throw new RowError('a message has no "message_id"')
  if (typeof text !== 'string') throw new RowError(`message ${id} has no "text"`)
  if (role !== 'prompter' && role !== 'assistant')
    throw new RowError(`message ${id}: role is neither prompter nor assistant`)
  return {
    messageId: id,
    parentId: optional(row, 'parent_id', 'string'),
    text,
    role,
    lang: optional(row, 'lang', 'string'),
    rank: optional(row, 'rank', 'number'),
    deleted: optional(row, 'deleted', 'boolean'),
    synthetic: optional(row, 'synthetic', 'boolean'),
    reviewResult: optional(row, 'review_result', 'boolean'),
    treeId: optional(row, 'message_tree_id', 'string'),
    treeState: optional(row, 'tree_state', 'string'),
    replies: [],
  }
}

function optional(row: Row, key: string, type: 'string'): string | undefined
function optional(row: Row, key: string, type: 'number'): number | undefined
function optional(row: Row, key: string, type: 'boolean'): boolean | undefined
function optional(row: Row, key: string, type: string): unknown {
  const value = row[key]
  if (value === undefined || value === null) return undefined
  if (typeof value !== type) throw new RowError(`message ${String(row.message_id)}: field "${key}" is not a ${type}`)
  return value
}
