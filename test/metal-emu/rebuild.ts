// Compiling one changed file of what the build made, for mutants.
import { execFile } from 'node:child_process'
import { cpSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { promisify } from 'node:util'
import { packageRoot } from '../../lib/native-loader.js'

export const run: (command: string, args: string[]) => Promise<{ stdout: string; stderr: string }> = promisify(execFile)
const root = packageRoot()
const tree = path.join(root, 'build/cmake')

/**
 * Compiles `source` as the build compiles the file called `like`, if with less optimisation.
 *
 * @returns the compiler
 */
export async function compileAs(like: string, source: string, object: string): Promise<string> {
  const commands = JSON.parse(readFileSync(path.join(tree, 'compile_commands.json'), 'utf8')) as {
    file: string
    command: string
  }[]
  const { command } = commands.find(each => path.basename(each.file) === like)!
  const words = command.split(' ').filter(word => word !== '-O2' && word !== '-O3' && !word.endsWith('ccache'))
  const [compiler, ...flags] = words.slice(0, words.indexOf('-o')) as [string, ...string[]]
  await run(compiler, [...flags, '-O1', '-c', source, '-o', object])
  return compiler
}

/** The object files of targets of test/metal-emu, without those of the sources called `but`. */
export function objectsOf(targets: readonly string[], but: readonly string[]): string[] {
  return targets.flatMap(target => {
    const folder = path.join(tree, 'test/metal-emu/CMakeFiles', `${target}.dir`)
    return readdirSync(folder, { recursive: true })
      .map(name => path.join(folder, String(name)))
      .filter(name => name.endsWith('.o') && !but.includes(path.basename(name, '.o')))
  })
}

/** A library of the emulator with another text of a family's kernels, made in `folder`. @returns its path */
export async function emulatorWith(family: string, text: string, folder: string): Promise<string> {
  for (const file of ['prelude.metal', 'params.h']) cpSync(path.join(root, 'csrc/metal', file), path.join(folder, file))
  const [kernel, bound, object, library] = [`${family}.metal`, `${family}.metal.cc`, 'changed.o', 'changed.so'].map(
    name => path.join(folder, name),
  ) as [string, string, string, string]
  writeFileSync(kernel, text)
  await run(process.execPath, [path.join(root, 'test/metal-emu/bind.mjs'), bound, kernel])
  const compiler = await compileAs(`${family}.metal.cc`, bound, object)
  const kept = objectsOf(['train_core_metal_kernels', 'train_core_metal_emulator'], [`${family}.metal.cc`])
  await run(compiler, ['-shared', ...kept, object, '-ldl', '-o', library])
  return library
}
