import assert from 'node:assert/strict'
import { test } from 'node:test'
import { allOptions, libraryOptions } from '../../lib/cli/command.js'
import { camelCase } from '../../lib/cli/options.js'
import { DISTILL, PRETRAIN } from '../../lib/cli/training-options.js'
import { resolveDistill, resolvePretrain } from '../../lib/train/options.js'

const RUN = { model: 'L=1,H=1,C=8', data: ['a.txt'] }
const PAIR = { teacher: 't', student: 's', data: ['a.txt'] }
const refused = (resolve: () => unknown, message: RegExp): void => {
  assert.throws(resolve, { code: 'ERR_CONFIG', message })
}

test('a name that is none of the options is refused, with the nearest', () => {
  const given = { ...RUN, batchsize: 3 }
  refused(() => resolvePretrain(given), /^unknown option batchsize; did you mean batchSize\?$/)
  refused(() => resolvePretrain({ ...RUN, modle: 'x' } as never), /unknown option modle; did you mean model\?/)
  refused(() => resolvePretrain({ ...RUN, layerMap: [0] } as never), /unknown option layerMap/)
  refused(() => resolveDistill({ ...PAIR, topk: 3 } as never), /unknown option topk; did you mean topK\?/)
  assert.equal(resolvePretrain({ ...RUN, batchSize: 3 }).batchSize, 3)
})

test('every flag is a name that the library takes', () => {
  const flags = (options: object): object =>
    libraryOptions(Object.fromEntries(Object.keys(options).map(name => [camelCase(name), undefined])))
  assert.doesNotThrow(() => resolvePretrain({ ...flags(allOptions(PRETRAIN)), ...RUN }))
  assert.doesNotThrow(() => resolveDistill({ ...flags(allOptions(DISTILL)), ...PAIR }))
})

test('what is no options, or of another kind than its option, is refused by name', () => {
  for (const given of [undefined, null, 'L=1'] as never[]) {
    refused(() => resolvePretrain(given), /options must be an object; got/)
    refused(() => resolveDistill(given), /options must be an object; got/)
  }
  const wrong: Record<string, unknown> = {
    ...{ steps: '3', lr: '0.1', minLr: '0', beta1: '0.5', dropout: '0.1', weightDecay: '0', batchSize: null },
    ...{ tokenizer: 5, textField: 5, device: 5, resume: true, out: 5, evalData: 'a.txt', packDocuments: 'no' },
  }
  for (const [name, value] of Object.entries(wrong)) {
    const flag = `--${name.replace(/[A-Z]/g, letter => `-${letter.toLowerCase()}`)}`
    refused(() => resolvePretrain({ ...RUN, [name]: value }), new RegExp(`^${flag} must be .*; got "?${value}`))
  }
  for (const layerMap of ['0', [0.5], [-1], 0] as never[])
    refused(() => resolveDistill({ ...PAIR, layerMap }), /^--layer-map must be a list of whole numbers; got/)
  for (const more of [{ beta: '0.5' }, { init: 5 }, { teacherCache: 5 }, { kl: '1' }] as object[])
    refused(() => resolveDistill({ ...PAIR, ...more }), /^--(beta|init|teacher-cache|kl) must be .*; got/)
})

test('the bound that a number exceeds is the one that is named', () => {
  refused(() => resolvePretrain({ ...RUN, seed: -1 }), /--seed must be an integer of 0 or more; got -1/)
  refused(() => resolvePretrain({ ...RUN, seed: 2 ** 53 }), /--seed must be an integer from 0 to 9007199254740991; got/)
})
