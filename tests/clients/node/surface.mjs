// What is not chat: each scenario takes the SDK's client and gives what it saw. The models are those of the tests.

import { toFile } from "openai";

const PROMPT = "A cat.";
const IMAGE = { model: "gpt-image-1", prompt: PROMPT, size: "1024x1024", quality: "low" };
const SPEECH = { model: "by-sound", voice: "alloy", input: "Hello there." };

async function all(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

function file(name, encoded) {
  return toFile(Buffer.from(process.env[encoded], "base64"), name);
}

export const surface = {
  async completions(client) {
    const reply = await client.completions.create({ model: process.env.MODEL, prompt: "Say", max_tokens: 9 });
    return { text: reply.choices[0].text, usage: reply.usage };
  },

  async completions_stream(client) {
    const asked = { model: process.env.MODEL, prompt: "Say", max_tokens: 9, stream: true };
    const chunks = await all(await client.completions.create(asked));
    return { text: chunks.map((chunk) => chunk.choices[0]?.text ?? "").join(""), usages: chunks.filter((c) => c.usage) };
  },

  async embeddings(client) {
    // The SDK asks for base64 by itself, and decodes it.
    const reply = await client.embeddings.create({ model: process.env.MODEL, input: ["one", "two"] });
    return { vectors: reply.data.map((one) => one.embedding), usage: reply.usage };
  },

  async moderations(client) {
    const reply = await client.moderations.create({ model: "by-request", input: "Hello" });
    return { flagged: reply.results.map((one) => one.flagged) };
  },

  async images_generate(client) {
    const reply = await client.images.generate(IMAGE);
    return { bytes: reply.data[0].b64_json.length, usage: reply.usage };
  },

  async images_generate_stream(client) {
    const events = await all(await client.images.generate({ ...IMAGE, stream: true, partial_images: 2 }));
    return { kinds: events.map((event) => event.type) };
  },

  async images_edit_stream(client) {
    const image = [await file("a.png", "PICTURE"), await file("b.png", "PICTURE")];
    const events = await all(await client.images.edit({ ...IMAGE, image, stream: true }));
    return { kinds: events.map((event) => event.type) };
  },

  async images_variation(client) {
    const image = await file("a.png", "PICTURE");
    const reply = await client.images.createVariation({ model: "by-image", image, n: 2, size: "1024x1024" });
    return { urls: reply.data.map((one) => one.url) };
  },

  async speech(client) {
    const reply = await client.audio.speech.create(SPEECH);
    return { bytes: (await reply.arrayBuffer()).byteLength, content_type: reply.headers.get("content-type") };
  },

  async speech_events(client) {
    const reply = await client.audio.speech.create({ ...SPEECH, stream_format: "sse" });
    return { text: await reply.text() };
  },

  async transcription(client) {
    const sound = await file("speech.wav", "SOUND");
    return { text: (await client.audio.transcriptions.create({ model: "by-time", file: sound })).text };
  },

  async transcription_stream(client) {
    const asked = { model: "by-tokens", file: await file("speech.wav", "SOUND"), language: "en", stream: true };
    return { kinds: (await all(await client.audio.transcriptions.create(asked))).map((event) => event.type) };
  },

  async translation(client) {
    const asked = { model: "by-time", file: await file("speech.wav", "SOUND"), response_format: "text" };
    return { text: await client.audio.translations.create(asked) };
  },

  async no_sound(client) {
    await client.audio.transcriptions.create({ model: "by-time", file: await toFile(Buffer.from("none"), "a.wav") });
  },
};
