// The official `openai` package for Node against a running proxy. Prints one line for each check.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "sk-test", maxRetries: 0 });
const model = "scripted";
const ALIGNED = "I am kind. Dear friend, all is well.";
const hello = [{ role: "user", content: "hello" }];

async function check(name, run) {
  await run();
  console.log(`ok ${name}`);
}

await check("a completion", async () => {
  const reply = await client.chat.completions.create({ model, messages: hello });
  assert.equal(reply.choices[0].message.content, ALIGNED);
  assert.equal(reply.choices[0].finish_reason, "stop");
  assert.equal(reply.stream_aligner.cost.corrections, 1);
  assert.ok(reply._request_id);
});

await check("a stream", async () => {
  const stream = await client.chat.completions.create({
    model, messages: hello, stream: true, stream_options: { include_usage: true },
  });
  let text = "";
  let last;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    last = chunk;
  }
  assert.equal(text, ALIGNED);
  assert.equal(last.choices.length, 0);
  assert.equal(last.usage.total_tokens, last.usage.prompt_tokens + last.usage.completion_tokens);
});

await check("the streaming helper", async () => {
  const runner = client.chat.completions.stream({ model, messages: hello });
  let text = "";
  runner.on("content", (delta) => (text += delta));
  assert.equal(await runner.finalContent(), ALIGNED);
  assert.equal(text, ALIGNED);
});

await check("two choices", async () => {
  const reply = await client.chat.completions.create({ model, messages: hello, n: 2 });
  assert.deepEqual(reply.choices.map((choice) => choice.message.content), [ALIGNED, ALIGNED]);
});

await check("parse", async () => {
  const Sum = z.object({ sum: z.number() });
  const reply = await client.chat.completions.parse({
    model,
    messages: [{ role: "user", content: "as JSON" }],
    response_format: zodResponseFormat(Sum, "sum"),
  });
  assert.equal(reply.choices[0].message.parsed.sum, 4);
});

await check("the tool runner", async () => {
  const asked = [];
  const runner = client.chat.completions.runTools({
    model,
    stream: true,
    messages: [{ role: "user", content: "the weather" }],
    tools: [
      {
        type: "function",
        function: {
          name: "weather",
          parameters: { type: "object", properties: { city: { type: "string" } } },
          parse: JSON.parse,
          function: ({ city }) => {
            asked.push(city);
            return "sunny";
          },
        },
      },
    ],
  });
  assert.equal(await runner.finalContent(), "It is sunny in Rome.");
  assert.deepEqual(asked, ["Rome"]);
});

await check("errors", async () => {
  await assert.rejects(
    client.chat.completions.create({ model: "none", messages: hello }),
    (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found",
  );
  const stream = await client.chat.completions.create({
    model, messages: [{ role: "user", content: "break" }], stream: true,
  });
  let text = "";
  await assert.rejects(async () => {
    for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
  }, OpenAI.APIError);
  assert.equal(text, "I am kind.");
});

await check("models", async () => {
  const ids = [];
  for await (const one of client.models.list()) ids.push(one.id);
  assert.deepEqual(ids, [model]);
});
