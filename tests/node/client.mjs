// What a client of the TypeScript SDK's first major version sees of a proxy, as JSON on stdout.
//
// tests/clients/test_typescript_sdk.py runs it: node client.mjs SCENARIO URL

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import {
  CallToolResultSchema,
  CreateMessageRequestSchema,
  ElicitRequestSchema,
  ListRootsRequestSchema,
  LoggingMessageNotificationSchema,
  ResourceUpdatedNotificationSchema,
  ToolListChangedNotificationSchema,
} from "@modelcontextprotocol/sdk/types.js";

const QUICKLY = {
  initialReconnectionDelay: 10,
  maxReconnectionDelay: 50,
  reconnectionDelayGrowFactor: 1.5,
  maxRetries: 5,
};

// One client: its name is what it answers, and it keeps what it is told.
class User {
  constructor(name, url, options = {}) {
    this.name = name;
    this.asked = [];
    this.logs = [];
    this.updated = [];
    this.listChanges = 0;
    this.errors = [];
    this.transport = new StreamableHTTPClientTransport(new URL(url), {
      reconnectionOptions: QUICKLY,
      ...options,
    });
    this.client = new Client(
      { name, version: "1.0" },
      { capabilities: { elicitation: {}, sampling: {}, roots: {} } },
    );
    const { client } = this;
    client.onerror = (error) => this.errors.push(String(error));
    client.setRequestHandler(ElicitRequestSchema, ({ params }) => {
      this.asked.push(params.message);
      return { action: "accept", content: { name } };
    });
    client.setRequestHandler(CreateMessageRequestSchema, () => ({
      role: "assistant",
      model: "a-model",
      content: { type: "text", text: `${name}'s model` },
    }));
    client.setRequestHandler(ListRootsRequestSchema, () => ({
      roots: [{ uri: `file:///${name}` }],
    }));
    client.setNotificationHandler(LoggingMessageNotificationSchema, ({ params }) => {
      this.logs.push(params.data);
    });
    this.wasUpdated = new Promise((resolve) => {
      client.setNotificationHandler(ResourceUpdatedNotificationSchema, ({ params }) => {
        this.updated.push(params.uri);
        resolve();
      });
    });
    this.hasChanged = new Promise((resolve) => {
      client.setNotificationHandler(ToolListChangedNotificationSchema, () => {
        this.listChanges += 1;
        resolve();
      });
    });
  }

  async connect() {
    await this.client.connect(this.transport);
    return this;
  }

  async call(name, args = {}, options = {}) {
    const result = await this.client.callTool(
      { name, arguments: args },
      CallToolResultSchema,
      options,
    );
    return result.content[0].text;
  }

  async variables() {
    const { contents } = await this.client.readResource({ uri: "notebook://variables" });
    return JSON.parse(contents[0].text);
  }
}

// The HTTP status of a request that the SDK gave up.
async function statusOf(promise) {
  try {
    await promise;
    return null;
  } catch (error) {
    return error.code ?? String(error);
  }
}

const scenarios = {
  // Two users at once of the demo server.
  async notebooks(url) {
    const users = await Promise.all(
      ["alice", "bob"].map((name) => new User(name, url).connect()),
    );
    const seen = { idsDiffer: users[0].transport.sessionId !== users[1].transport.sessionId };
    const work = async (user, by) => {
      await user.call("evaluate", { source: `${user.name} = ${by}` });
      const counts = [];
      for (let turn = 0; turn < 10; turn += 1) counts.push(await user.call("count", { by }));
      const greeting = await user.call("greet");
      const progress = [];
      await user.call(
        "countdown",
        { steps: 3, delay: 0.01 },
        { onprogress: (told) => progress.push([told.progress, told.total, told.message]) },
      );
      const variables = await user.variables();
      const { asked, logs } = user;
      const errors = [...user.errors]; // closing adds one of its own
      seen[user.name] = { counts, greeting, asked, variables, progress, logs, errors };
    };
    await Promise.all([work(users[0], 1), work(users[1], 100)]);
    seen.version = users[0].transport.protocolVersion;
    for (const { transport, client } of users) {
      await transport.terminateSession();
      await client.close();
    }
    return seen;
  },

  // One user of the server that asks and tells everything.
  async everything(url) {
    const carol = await new User("carol", url).connect();
    const { client } = carol;
    await client.ping();
    await client.subscribeResource({ uri: "test://watched-resource" });
    await carol.call("test_trigger_resource_updated");
    await carol.wasUpdated;
    const before = (await client.listTools()).tools.length;
    await carol.call("test_trigger_list_changed", { kind: "tools" });
    await carol.hasChanged;
    const prompt = await client.getPrompt({
      name: "test_prompt_with_arguments",
      arguments: { arg1: "a", arg2: "b" },
    });
    const overlapping = await Promise.all(
      ["first", "second"].map((message) => carol.call("test_elicitation", { message })),
    );
    const seen = {
      server: client.getServerVersion().name,
      sampled: await carol.call("test_sampling", { prompt: "What?" }),
      roots: JSON.parse(await carol.call("test_list_roots"))[0].uri,
      updated: carol.updated,
      added: (await client.listTools()).tools.length - before,
      listChanges: carol.listChanges,
      prompt: prompt.messages[0].content.text,
      prompts: (await client.listPrompts()).prompts.length,
      resources: (await client.listResources()).resources.length,
      asked: carol.asked.toSorted(),
      overlapping,
      refused: await statusOf(client.callTool({ name: "no_such_tool" })),
      errors: [...carol.errors],
    };
    await carol.transport.terminateSession();
    await client.close();
    return seen;
  },

  // The connection of a call breaks while it runs; the SDK takes its stream up again.
  async brokenStream(url) {
    let breakIt = null;
    const requests = [];
    const withBreaks = (input, init) => {
      const headers = new Headers(init.headers);
      requests.push([init.method, headers.has("last-event-id")]);
      if (init.method !== "POST" || !init.body.includes("countdown")) return fetch(input, init);
      const breaking = new AbortController();
      breakIt = () => breaking.abort();
      return fetch(input, { ...init, signal: breaking.signal });
    };
    const dave = await new User("dave", url, { fetch: withBreaks }).connect();
    const progress = [];
    const answer = await dave.call(
      "countdown",
      { steps: 12, delay: 0.05 },
      {
        onprogress: (told) => {
          progress.push(told.progress);
          if (told.progress === 3) breakIt();
        },
      },
    );
    const resumed = requests.filter(([method, resuming]) => method === "GET" && resuming).length;
    const posted = requests.filter(([method]) => method === "POST").length;
    await dave.transport.terminateSession();
    await dave.client.close();
    return { answer, progress, logs: dave.logs, resumed, posted };
  },

  // The client goes in the middle of a call; another one has its session id and its last event.
  async newClient(url) {
    const first = await new User("erin", url).connect();
    await first.call("evaluate", { source: "x = 42" });
    let token;
    const seenThree = new Promise((resolve) => {
      let steps = 0;
      first.client
        .callTool({ name: "countdown", arguments: { steps: 8, delay: 0.05 } }, CallToolResultSchema, {
          onprogress: () => {
            steps += 1;
            if (steps === 3) resolve();
          },
          onresumptiontoken: (told) => {
            token = told;
          },
        })
        .catch(() => {});
    });
    await seenThree;
    const { sessionId, protocolVersion } = first.transport;
    await first.client.close(); // no DELETE: the session stays

    const second = new User("erin", url, { sessionId });
    await second.connect();
    second.transport.setProtocolVersion(protocolVersion);
    const result = await second.client.request(
      { method: "tools/call", params: { name: "countdown", arguments: {} } },
      CallToolResultSchema,
      { resumptionToken: token, onresumptiontoken: () => {} },
    );
    const variables = await second.variables();
    const lastLog = second.logs.at(-1);
    await second.transport.terminateSession();
    await second.client.close();
    return { answer: result.content[0].text, lastLog, variables };
  },

  // A session that its client has ended is unknown from then on, also to those who know its id.
  async terminated(url) {
    const frank = await new User("frank", url).connect();
    const stays = await new User("grace", url).connect();
    await stays.call("evaluate", { source: "x = 1" });
    const { sessionId } = frank.transport;
    await frank.transport.terminateSession();
    const idAfterwards = frank.transport.sessionId ?? null;
    await frank.client.close();
    const late = new User("frank", url, { sessionId });
    await late.connect();
    const called = await statusOf(late.call("count"));
    const endedAgain = await statusOf(late.transport.terminateSession());
    await late.client.close();
    const other = await stays.call("evaluate", { source: "x" });
    await stays.transport.terminateSession();
    await stays.client.close();
    return { idAfterwards, called, endedAgain, other };
  },
};

const [scenario, url] = process.argv.slice(2);
process.stdout.write(JSON.stringify(await scenarios[scenario](url)));
