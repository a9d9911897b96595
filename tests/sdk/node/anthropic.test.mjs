// The npm package `@anthropic-ai/sdk`, unmodified.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import Anthropic from '@anthropic-ai/sdk';
import { zodOutputFormat } from '@anthropic-ai/sdk/helpers/zod';
import { z } from 'zod';

import { idle, key, url } from './site.mjs';

const client = new Anthropic({ baseURL: url, apiKey: key, maxRetries: 0 });
const said = (content) => [{ role: 'user', content }];
const texts = (message) => message.content.filter((block) => block.type === 'text').map((block) => block.text);
const weather = {
  name: 'weather',
  input_schema: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
};

test('a whole answer, by either credential', async () => {
  const { data, request_id } = await client.messages
    .create({ model: 'default', max_tokens: 50, system: 'Repeat.', messages: said('one two three') })
    .withResponse();
  assert.deepEqual(texts(data), ['one two three']);
  assert.equal(data.stop_reason, 'end_turn');
  assert.deepEqual([data.usage.input_tokens, data.usage.output_tokens], [4, 3]);
  assert.ok(request_id);
  const bearer = new Anthropic({ baseURL: url, apiKey: null, authToken: key, maxRetries: 0 });
  assert.deepEqual(texts(await bearer.messages.create({ model: 'default', max_tokens: 9, messages: said('hello') })), ['hello']);
});

test('a stream, and the helper that puts it together', async () => {
  const kinds = [];
  for await (const event of await client.messages.create({ model: 'default', max_tokens: 50, messages: said('a b'), stream: true })) {
    kinds.push(event.type);
  }
  assert.equal(kinds[0], 'message_start');
  assert.equal(kinds.at(-1), 'message_stop');
  const pieces = [];
  const stream = client.messages.stream({ model: 'default', max_tokens: 50, messages: said('one two') }).on('text', (text) => pieces.push(text));
  assert.equal(await stream.finalText(), 'one two');
  assert.deepEqual(pieces, ['one', ' two']);
});

test('tools, whole and streamed', async () => {
  const messages = said('call weather {"city": "Rome"}');
  const answer = await client.messages.create({ model: 'default', max_tokens: 99, messages, tools: [weather] });
  assert.equal(answer.stop_reason, 'tool_use');
  const [call] = answer.content.filter((block) => block.type === 'tool_use');
  assert.deepEqual(call.input, { city: 'Rome' });
  const turns = [
    ...messages,
    { role: 'assistant', content: answer.content },
    { role: 'user', content: [{ type: 'tool_result', tool_use_id: call.id, content: 'sunny' }] },
  ];
  assert.deepEqual(texts(await client.messages.create({ model: 'default', max_tokens: 99, messages: turns, tools: [weather] })), ['sunny']);
  const streamed = await client.messages.stream({ model: 'default', max_tokens: 99, messages, tools: [weather] }).finalMessage();
  assert.deepEqual(streamed.content.find((block) => block.type === 'tool_use').input, { city: 'Rome' });
});

test('answers parsed by zod, thinking, counts, models', async () => {
  const Place = z.object({ city: z.string(), people: z.number() });
  const parsed = await client.messages.parse({
    model: 'default',
    max_tokens: 99,
    messages: said('Rome'),
    output_config: { format: zodOutputFormat(Place) },
  });
  assert.deepEqual(parsed.parsed_output, { city: 'Rome', people: 0 });
  const thought = await client.messages.create({ model: 'thinks', max_tokens: 99, messages: said('why'), thinking: { type: 'adaptive' } });
  assert.deepEqual(thought.content.map((block) => block.type), ['thinking', 'text']);
  assert.ok((await client.messages.countTokens({ model: 'default', messages: said('one two') })).input_tokens >= 2);
  const names = [];
  for await (const model of client.models.list({ limit: 2 })) names.push(model.id);
  assert.ok(names.includes('default') && names.includes('thinks'));
});

test('errors', async () => {
  const ask = (more, options) => client.messages.create({ model: 'default', max_tokens: 99, messages: said('a b c d e'), ...more }, options);
  await assert.rejects(ask({ model: 'claude-9' }), (error) => error instanceof Anthropic.NotFoundError && error.type === 'not_found_error');
  await assert.rejects(ask({ max_tokens: 0 }), Anthropic.BadRequestError);
  await assert.rejects(ask({ model: 'breaks' }), Anthropic.InternalServerError);
  await assert.rejects(ask({ model: 'slow' }, { timeout: 50 }), Anthropic.APIConnectionTimeoutError);
  const wrong = new Anthropic({ baseURL: url, apiKey: 'sk-ant-wrong', maxRetries: 0 });
  await assert.rejects(wrong.models.list(), Anthropic.AuthenticationError);
  await assert.rejects(client.messages.stream({ model: 'breaks', max_tokens: 99, messages: said('a b c d e') }).finalMessage(), Anthropic.APIError);
});

test('an aborted stream frees its place', async () => {
  const stream = client.messages.stream({ model: 'slow', max_tokens: 900, messages: said('word '.repeat(500)) });
  const ended = assert.rejects(stream.done(), Anthropic.APIUserAbortError);
  stream.on('text', () => stream.abort());
  await ended;
  await idle();
});
