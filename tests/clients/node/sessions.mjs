// Realtime sessions: the SDK speaks WebSocket over TLS only.

function over(connection) {
  return new Promise((resolve, reject) => {
    let said = "";
    connection.on("response.output_audio_transcript.delta", (event) => (said += event.delta));
    connection.on("response.done", (event) => resolve({ said, usage: event.response.usage }));
    connection.on("error", (error) => reject(error));
  });
}

async function open(client) {
  const { OpenAIRealtimeWS } = await import("openai/realtime/ws");
  return new OpenAIRealtimeWS({ model: process.env.MODEL }, client);
}

export const sessions = {
  async realtime(client) {
    const connection = await open(client);
    connection.socket.on("open", () => {
      connection.send({ type: "session.update", session: { type: "realtime", output_modalities: ["audio"] } });
      connection.send({ type: "response.create" });
    });
    const seen = await over(connection);
    connection.close();
    return seen;
  },

  async realtime_refused(client) {
    const connection = await open(client.withOptions({ apiKey: "fb-unknown" }));
    return over(connection).catch((error) => ({ message: error.message }));
  },
};
