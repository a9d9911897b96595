// The npm package `openai`, unmodified.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import OpenAI from 'openai';
import { zodResponseFormat, zodTextFormat } from 'openai/helpers/zod';
import { z } from 'zod';

import { busy, idle, key, url } from './site.mjs';

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const said = (content) => [{ role: 'user', content }];
const weather = {
  type: 'function',
  function: { name: 'weather', parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] } },
};
const Place = z.object({ city: z.string(), people: z.number() });

test('a whole answer, its headers and its rating', async () => {
  const { data, response, request_id } = await client.chat.completions
    .create({ model: 'default', messages: said('one two three') })
    .withResponse();
  assert.equal(data.choices[0].message.content, 'one two three');
  assert.equal(data.usage.completion_tokens, 3);
  assert.equal(request_id, response.headers.get('x-request-id'));
  assert.ok(Number(response.headers.get('x-ratelimit-remaining-requests')) > 0);
  const rated = await fetch(`${url}/feedback`, {
    method: 'POST',
    headers: { Authorization: `Bearer ${key}`, 'Content-Type': 'application/json' },
    body: JSON.stringify({ prediction_id: data.id, rating: 'up' }),
  });
  assert.equal(rated.status, 201);
});

test('a stream, and the helper that puts it together', async () => {
  const stream = await client.chat.completions.create({
    model: 'default',
    messages: said('one two'),
    stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join(''), 'one two');
  assert.equal(chunks.at(-1).usage.completion_tokens, 2);
  const helper = client.chat.completions.stream({ model: 'default', messages: said('one two') });
  assert.equal(await helper.finalContent(), 'one two');
});

test('tools, by hand and by the runner', async () => {
  const messages = said('call weather {"city": "Rome"}');
  const answer = await client.chat.completions.create({ model: 'default', messages, tools: [weather] });
  const [choice] = answer.choices;
  assert.equal(choice.finish_reason, 'tool_calls');
  const [call] = choice.message.tool_calls;
  assert.deepEqual(JSON.parse(call.function.arguments), { city: 'Rome' });
  const last = await client.chat.completions.create({
    model: 'default',
    messages: [...messages, choice.message, { role: 'tool', tool_call_id: call.id, content: 'sunny' }],
    tools: [weather],
  });
  assert.equal(last.choices[0].message.content, 'sunny');
  const runner = client.chat.completions.runTools({
    model: 'default',
    messages,
    tools: [{ type: 'function', function: { ...weather.function, parse: JSON.parse, function: ({ city }) => `sunny in ${city}` } }],
  });
  assert.equal(await runner.finalContent(), 'sunny in Rome');
});

test('answers parsed by zod', async () => {
  const chat = await client.chat.completions.parse({
    model: 'default',
    messages: said('Rome'),
    response_format: zodResponseFormat(Place, 'place'),
  });
  assert.deepEqual(chat.choices[0].message.parsed, { city: 'Rome', people: 0 });
  const response = await client.responses.parse({
    model: 'default',
    input: 'Lima',
    text: { format: zodTextFormat(Place, 'place') },
  });
  assert.deepEqual(response.output_parsed, { city: 'Lima', people: 0 });
});

test('responses: whole, streamed, continued, read, deleted', async () => {
  const first = await client.responses.create({ model: 'default', input: 'one two' });
  assert.equal(first.output_text, 'one two');
  const second = await client.responses.create({ model: 'default', input: 'three', previous_response_id: first.id });
  assert.equal((await client.responses.retrieve(second.id)).output_text, 'three');
  const kinds = [];
  for await (const event of await client.responses.create({ model: 'default', input: 'a b', stream: true })) kinds.push(event.type);
  assert.equal(kinds[0], 'response.created');
  assert.equal(kinds.at(-1), 'response.completed');
  const helper = client.responses.stream({ model: 'default', input: 'a b' });
  assert.equal((await helper.finalResponse()).output_text, 'a b');
  await client.responses.delete(second.id);
  await assert.rejects(client.responses.retrieve(second.id), OpenAI.NotFoundError);
});

test('embeddings and models', async () => {
  const byDefault = await client.embeddings.create({ model: 'default', input: ['a red car'] });
  const asNumbers = await client.embeddings.create({ model: 'default', input: ['a red car'], encoding_format: 'float' });
  byDefault.data[0].embedding.forEach((value, at) => assert.ok(Math.abs(value - asNumbers.data[0].embedding[at]) < 1e-6));
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.ok(names.includes('default'));
  assert.equal((await client.models.retrieve('echo/echo')).id, 'echo/echo');
});

test('errors', async () => {
  const ask = (more, options) => client.chat.completions.create({ model: 'default', messages: said('a b c d e'), ...more }, options);
  await assert.rejects(ask({ model: 'gpt-9' }), (error) => error instanceof OpenAI.NotFoundError && error.code === 'model_not_found');
  await assert.rejects(ask({ temperature: 3 }), (error) => error instanceof OpenAI.BadRequestError && error.param === 'temperature');
  await assert.rejects(ask({ model: 'breaks' }), OpenAI.InternalServerError);
  await assert.rejects(ask({ model: 'slow' }, { timeout: 50 }), OpenAI.APIConnectionTimeoutError);
  const wrong = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'sk-wrong', maxRetries: 0 });
  await assert.rejects(wrong.models.list(), OpenAI.AuthenticationError);
  const broken = await ask({ model: 'breaks', stream: true });
  await assert.rejects(async () => {
    for await (const chunk of broken) assert.ok(chunk.id);
  }, OpenAI.APIError);
});

test('an aborted stream frees its place', async () => {
  const controller = new AbortController();
  const words = said('word '.repeat(500));
  const stream = await client.chat.completions.create({ model: 'slow', messages: words, stream: true }, { signal: controller.signal });
  for await (const chunk of stream) {
    if (chunk.choices[0].delta.content) break;
  }
  controller.abort();
  await idle();
  const waiting = new AbortController();
  const answer = client.chat.completions.create({ model: 'slow', messages: words }, { signal: waiting.signal });
  const rejected = assert.rejects(answer, OpenAI.APIUserAbortError);
  await busy();
  waiting.abort();
  await rejected;
  await idle();
});
