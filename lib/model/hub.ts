import { existsSync } from 'node:fs'
import { mkdir, readdir, readFile, rename, rm } from 'node:fs/promises'
import { homedir } from 'node:os'
import path from 'node:path'
import { cacheFolder } from '../data/cache.js'
import { fileError } from '../durable-file.js'
import { TrainCoreError } from '../errors.js'
import { PRESET_NAMES } from './config.js'
import { download, NotThere, type RemoteFile } from './download.js'
import { INDEX_FILE, SINGLE_FILE } from './safetensors.js'

/** How a caller follows and stops a download. */
export interface HubHooks {
  signal?: AbortSignal
  /** of one file: bytes on the disk, bytes in all (null: not known) */
  onProgress?: (file: string, done: number, total: number | null) => void
  /** one line each: what is fetched from where, an attempt that failed */
  onNotice?: (message: string) => void
}

const REPOSITORIES: Readonly<Record<string, string>> = {
  gpt2: 'openai-community/gpt2',
  'gpt2-medium': 'openai-community/gpt2-medium',
  'gpt2-large': 'openai-community/gpt2-large',
  'gpt2-xl': 'openai-community/gpt2-xl',
  distilgpt2: 'distilbert/distilgpt2',
}

const ENDPOINT = 'https://huggingface.co'
const NEEDED = ['config.json', SINGLE_FILE]
/** A repository may lack some of them. */
const TOKENIZER = ['tokenizer.json', 'tokenizer_config.json', 'vocab.json', 'merges.txt']

/**
 * The folder with the weights of a model: a folder as it is; of a preset the first of `./<name>`, Hugging Face's cache (HF_HUB_CACHE,
 * HF_HOME), train-core's cache, and a download from HF_ENDPOINT into the latter unless HF_HUB_OFFLINE is set.
 *
 * @returns the folder, with config.json and model.safetensors (or its index)
 * @throws TrainCoreError ERR_FILE, ERR_CONFIG (neither a folder nor a preset), ERR_ABORTED
 */
export async function resolveWeights(nameOrFolder: string, hooks: HubHooks = {}): Promise<string> {
  if (existsSync(path.join(nameOrFolder, 'config.json'))) return nameOrFolder
  const repository = Object.hasOwn(REPOSITORIES, nameOrFolder) ? REPOSITORIES[nameOrFolder] : undefined
  if (!repository) {
    const wanted = 'name a folder in Hugging Face layout (config.json, model.safetensors) or a preset'
    if (existsSync(nameOrFolder))
      throw new TrainCoreError('ERR_FILE', `${nameOrFolder} has no config.json`, { help: wanted })
    throw new TrainCoreError('ERR_CONFIG', `no weights are called ${nameOrFolder}`, {
      help: `${wanted}: ${PRESET_NAMES.join(', ')}`,
    })
  }
  const own = path.join(cacheFolder(), 'models', nameOrFolder)
  const found = (await inHuggingFaceCache(repository)) ?? (isModel(own) ? own : undefined)
  if (found) return found
  const cache = huggingFaceCache()
  if (isOffline())
    throw new TrainCoreError(
      'ERR_FILE',
      `the weights of ${nameOrFolder} are not on this machine (looked in ./${nameOrFolder}, ${cache} and ${own}), and HF_HUB_OFFLINE forbids to download them`,
      { help: 'name the folder that holds them' },
    )
  return await fetchModel(repository, own, hooks)
}

function isModel(folder: string): boolean {
  const has = (name: string): boolean => existsSync(path.join(folder, name))
  return has('config.json') && (has(SINGLE_FILE) || has(INDEX_FILE))
}

function isOffline(): boolean {
  return /^(1|on|yes|true)$/i.test(process.env.HF_HUB_OFFLINE ?? '')
}

/** Where huggingface_hub keeps repositories (its docs, "Environment variables"). */
function huggingFaceCache(): string {
  const { HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME } = process.env
  if (HF_HUB_CACHE) return HF_HUB_CACHE
  return path.join(HF_HOME || path.join(XDG_CACHE_HOME || path.join(homedir(), '.cache'), 'huggingface'), 'hub')
}

/** The snapshot that `main` names, else any that is whole. */
async function inHuggingFaceCache(repository: string): Promise<string | undefined> {
  const folder = path.join(huggingFaceCache(), `models--${repository.replace('/', '--')}`)
  const main = await readFile(path.join(folder, 'refs', 'main'), 'utf8').catch(() => '')
  const others = await readdir(path.join(folder, 'snapshots')).catch(() => [])
  const revisions = [main.trim(), ...others.sort()].filter(Boolean)
  return revisions.map(revision => path.join(folder, 'snapshots', revision)).find(isModel)
}

/** Fetches a model's files into a folder of their own, which gets its name when all are there. */
async function fetchModel(repository: string, folder: string, hooks: HubHooks): Promise<string> {
  const endpoint = (process.env.HF_ENDPOINT || ENDPOINT).replace(/\/+$/, '')
  hooks.onNotice?.(`${repository} is not on this machine: fetching it from ${endpoint} into ${folder}`)
  const url = (revision: string, file: string): string => `${endpoint}/${repository}/resolve/${revision}/${file}`
  const partial = `${folder}.partial`
  const get = async (revision: string, file: string): Promise<RemoteFile> =>
    await download(url(revision, file), path.join(partial, file), {
      signal: hooks.signal,
      onNotice: hooks.onNotice,
      onProgress: (done, total) => hooks.onProgress?.(file, done, total),
    })
  try {
    await mkdir(partial, { recursive: true })
    const { commit } = await get('main', 'config.json')
    // All other files from the same commit: the repository may change meanwhile.
    const revision = commit ?? 'main'
    for (const file of NEEDED.slice(1)) await get(revision, file)
    for (const file of TOKENIZER)
      await get(revision, file).catch(error => {
        if (!(error instanceof NotThere)) throw error
      })
    // Another process may have been faster.
    if (!isModel(folder)) await rename(partial, folder)
    else await rm(partial, { recursive: true, force: true })
  } catch (cause) {
    if (isModel(folder)) return folder
    throw fileError(`cannot fetch ${repository} into ${folder}`, cause)
  }
  return folder
}
