// Reads a .metal file and writes a C++ file that includes it unchanged (after prelude.metal and params.h, as the device's
// compiler sees it) and registers its kernels with the emulator. Refuses on the way what a C++ compiler would let pass.
//   node bind.mjs OUT.cc FILE.metal
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'

const BUILTINS = new Set([
  'thread_position_in_grid',
  'thread_position_in_threadgroup',
  'threadgroup_position_in_grid',
  'threads_per_threadgroup',
  'threadgroups_per_grid',
  'threads_per_grid',
  'thread_index_in_threadgroup',
  'thread_index_in_simdgroup',
  'simdgroup_index_in_threadgroup',
  'simdgroups_per_threadgroup',
  'threads_per_simdgroup',
])

// Of a kernel, all must be scalars or vectors of one width (Metal Shading Language Specification 5.2.3.6).
const POSITIONS = [...BUILTINS].filter(name => /position_in|threads_per_(threadgroup|grid)|threadgroups_per/.test(name))

/** The text with comments blanked, so that offsets and lines stay. */
function withoutComments(text) {
  const blank = comment => comment.replace(/[^\n]/g, ' ')
  return text.replace(/\/\*[\s\S]*?\*\/|\/\/[^\n]*/g, blank)
}

/** Index of the bracket that closes the one at `open`. */
function closing(text, open) {
  let depth = 0
  for (let k = open; k < text.length; k++) {
    if ('([{'.includes(text[k])) depth++
    else if (')]}'.includes(text[k]) && --depth === 0) return k
  }
  return text.length
}

function splitAtCommas(list) {
  const parts = []
  let depth = 0
  let from = 0
  for (let k = 0; k <= list.length; k++) {
    if ('([{<'.includes(list[k] ?? ' ')) depth++
    else if (')]}>'.includes(list[k] ?? ' ')) depth--
    else if (k === list.length || (list[k] === ',' && depth === 0)) {
      if (list.slice(from, k).trim()) parts.push({ text: list.slice(from, k), at: from })
      from = k + 1
    }
  }
  return parts
}

/** One parameter as the emulator's Arg; `fail(text)` says what is wrong with it. */
function argOf(parameter, used, fail) {
  const attribute = /\[\[\s*(\w+)\s*(?:\(\s*(\d+)\s*\))?\s*\]\]\s*$/.exec(parameter)
  if (!attribute) return fail(`parameter without an attribute: ${parameter.trim()}`)
  const [, kind, index] = attribute
  const key = `${kind}(${index ?? ''})`
  if (used.has(key)) fail(`${key} appears twice`)
  used.add(key)
  const pointer = /[*&]/.test(parameter)
  if (kind === 'buffer') {
    if (!pointer) fail('a buffer must be a pointer or a reference')
    if (!/\b(device|constant)\b/.test(parameter)) fail('a buffer needs device or constant')
    if (Number(index) > 30) fail('buffer index above 30')
    return `{emu::BUFFER, ${index}}`
  }
  if (kind === 'threadgroup') {
    if (!/\bthreadgroup\b[^[]*[*&]/.test(parameter))
      fail('threadgroup memory must be a threadgroup pointer or reference')
    return `{emu::THREADGROUP, ${index}}`
  }
  if (!BUILTINS.has(kind)) return fail(`unknown attribute ${kind}`)
  if (!/\bu(int|short)[23]?\b/.test(parameter)) fail(`${kind} must be uint or ushort, or a vector of them`)
  return `{emu::${kind.toUpperCase()}, 0}`
}

/**
 * Lines that call a macro of the file become the INSTANTIATE(..) it stands for:
 *   #define BOTH(T, type) INSTANTIATE("a_" type, a, T) INSTANTIATE("b_" type, b, T)
 */
function withoutMacros(source) {
  let text = source
  for (const [whole, name, list, body] of source.matchAll(
    /^#define (\w+)\(([\w, ]+)\)((?:[^\n]*\\\n)*[^\n]*\bINSTANTIATE\b[^\n]*)$/gm,
  )) {
    const names = list.split(',').map(each => each.trim())
    text = text.replace(whole, '').replace(new RegExp(`^${name}\\((.*)\\)$`, 'gm'), (_, given) => {
      const values = splitAtCommas(given).map(each => each.text.trim())
      const word = new RegExp(`\\b(${names.join('|')})\\b`, 'g')
      return body.replace(/\\\n/g, '\n').replace(word, found => values[names.indexOf(found)])
    })
  }
  return text.replace(/^ +(?=INSTANTIATE\()/gm, '').replace(/" +"/g, '')
}

/** @returns {{ errors: string[], entries: { name: string, call: string, args: string[], threads: number, constants?: { name: string, id: string }[] }[] }} */
export function scan(text, file) {
  const source = withoutComments(text)
  const errors = []
  const failAt = at => message => {
    errors.push(`${file}:${source.slice(0, at).split('\n').length}: ${message}`)
  }
  const kernels = []
  for (const match of source.matchAll(/\[\[\s*kernel\b([^\]]*)\]\]\s*void\s+(\w+)\s*\(/g)) {
    const open = match.index + match[0].length - 1
    const threads = /max_total_threads_per_threadgroup\((\d+)\)/.exec(match[1])?.[1]
    if (!threads) failAt(match.index)(`${match[2]} needs max_total_threads_per_threadgroup`)
    const used = new Set()
    const parameters = splitAtCommas(source.slice(open + 1, closing(source, open)))
    const args = parameters.map(p => argOf(p.text, used, failAt(open + 1 + p.at + p.text.search(/\S/))))
    const widths = new Set()
    for (const p of parameters) {
      const [, width, name] = /\bu(?:int|short)([23]?)\b[^[]*\[\[\s*(\w+)\s*\]\]/.exec(p.text) ?? []
      if (POSITIONS.includes(name)) widths.add(width)
    }
    if (widths.size > 1) failAt(match.index)(`${match[2]}: positions and sizes of different widths`)
    const template = /template\s*<[^;{}]*>\s*$/.test(source.slice(0, match.index))
    const end = closing(source, source.indexOf('{', closing(source, open)))
    kernels.push({ name: match[2], args, threads, template, at: match.index, body: source.slice(match.index, end) })
  }
  const entries = []
  for (const match of withoutMacros(source).matchAll(/^INSTANTIATE\(\s*"(\w+)"\s*,\s*(\w+)\s*,\s*([^)]*)\)/gm)) {
    const found = kernels.find(k => k.name === match[2])
    if (!found) errors.push(`${file}: no kernel ${match[2]} for ${match[1]}`)
    else entries.push({ ...found, name: match[1], call: `${found.name}<${match[3].trim()}>`, of: found.name })
  }
  for (const k of kernels) {
    if (!k.template) entries.push({ ...k, call: k.name, of: k.name })
    else if (!entries.some(e => e.of === k.name)) failAt(k.at)(`template kernel ${k.name} is never instantiated`)
  }
  lint(source, failAt)
  // A kernel needs the constants that its body names, or that a helper does.
  const declared = /constant\s+\w+\s+(\w+)\s*\[\[\s*function_constant\((\d+)\)\s*\]\]/g
  let helpers = source.replace(declared, '')
  for (const k of kernels) helpers = helpers.replace(k.body, '')
  for (const m of source.matchAll(declared)) {
    const named = new RegExp(`\\b${m[1]}\\b`)
    for (const e of entries)
      if (named.test(e.body) || named.test(helpers)) e.constants = [...(e.constants ?? []), { name: m[1], id: m[2] }]
  }
  return { errors, entries }
}

/** What C++ takes and Metal does not, or takes as something else. */
function lint(source, failAt) {
  for (const m of source.matchAll(/^[ \t]+threadgroup\s+\w[\w:<>, ]*\s+\w+\s*\[(?!\[)/gm))
    failAt(m.index)('threadgroup memory must be a kernel argument')
  const plain = '(?:float|half|bf16|int|uint|short|ushort|uchar|bool|T|A|B)[234]?'
  const pointer = `(^|[(,;{}=]|\\b\\w+)\\s*\\b((?:const\\s+)?${plain}(?:\\s+const)?)\\s*([*&])\\s*(\\w+|\\))`
  for (const m of source.matchAll(new RegExp(pointer, 'gm')))
    if (!['device', 'constant', 'threadgroup', 'thread', 'const', 'return'].includes(m[1]))
      failAt(m.index + m[1].length + 1)(`${m[3]} ${m[4]}: no address space`)
  for (const m of source.matchAll(/^\s*#\s*include\b/gm)) failAt(m.index)('only prelude.metal includes')
  for (const m of source.matchAll(/\b(double|new|delete|throw|try|virtual|dynamic_cast|std::\w+|goto)\b/g))
    failAt(m.index)(`${m[1]} is not in Metal`)
  for (const m of source.matchAll(/\[[&=]?\]\s*\(/g)) failAt(m.index)('a lambda is not in Metal')
}

function binding(file, { entries }) {
  const base = path.basename(file, '.metal')
  const folder = path.dirname(path.resolve(file))
  const registrations = entries.map((e, k) => {
    const call = `kernels_${base}::${e.call}`
    const list = (e.constants ?? []).map(({ name, id }) => {
      const at = `kernels_${base}::${name}`
      return `{"${name}", ${id}, const_cast<void*>(static_cast<const void*>(&${at})), sizeof ${at}}`
    })
    return `
const emu::Arg args_${k}[] = {${e.args.join(', ')}};
static_assert(emu::arity(&${call}) == ${e.args.length}, "${e.name}");
void call_${k}() { emu::call(&${call}, args_${k}); }
const bool done_${k} = emu::add_kernel({"${base}", "${e.name}", call_${k}, {${e.args.join(', ')}}, {${list.join(', ')}}, ${e.threads}});`
  })
  return `#include "${folder}/prelude.metal"
namespace kernels_${base} {
#include "${folder}/params.h"
#include "${path.resolve(file)}"
}
namespace {
${registrations.join('\n')}
}
`
}

if (process.argv[1] && path.resolve(process.argv[1]) === import.meta.filename) {
  const [out, file] = process.argv.slice(2)
  const scanned = scan(readFileSync(file, 'utf8'), file)
  for (const error of scanned.errors) console.error(error)
  if (scanned.errors.length) process.exit(1)
  writeFileSync(out, binding(file, scanned))
}
