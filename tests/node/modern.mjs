// What a client of the TypeScript SDK's second major version sees of a proxy, as JSON on stdout.
//
// tests/clients/test_typescript_sdk.py runs it: node modern.mjs SCENARIO URL

import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";

const REVISION = "2026-07-28";
const SESSION = "sessionproxy/session";

// One client: its name is what it answers, and it keeps what it is asked and told.
class User {
  constructor(name, mode) {
    this.asked = [];
    this.updated = [];
    this.errors = [];
    this.client = new Client(
      { name, version: "1.0" },
      {
        capabilities: { elicitation: {}, sampling: { tools: {} }, roots: {} },
        versionNegotiation: { mode },
      },
    );
    const { client } = this;
    client.onerror = (error) => this.errors.push(String(error));
    client.setRequestHandler("elicitation/create", ({ params }) => {
      this.asked.push(params.message);
      return { action: "accept", content: { name } };
    });
    client.setRequestHandler("sampling/createMessage", ({ params }) => {
      if (!params.tools) {
        const content = { type: "text", text: `${name}'s model` };
        return { role: "assistant", model: "a-model", content };
      }
      const content = [{ type: "tool_use", id: "1", name: params.tools[0].name, input: {} }];
      return { role: "assistant", model: "a-model", content, stopReason: "toolUse" };
    });
    client.setRequestHandler("roots/list", () => ({ roots: [{ uri: `file:///${name}` }] }));
    this.wasUpdated = new Promise((resolve) => {
      client.setNotificationHandler("notifications/resources/updated", ({ params }) => {
        this.updated.push(params.uri);
        resolve();
      });
    });
    this.hasChanged = new Promise((resolve) => {
      client.setNotificationHandler("notifications/tools/list_changed", () => resolve(true));
    });
  }

  async connect(url) {
    await this.client.connect(new StreamableHTTPClientTransport(new URL(url)));
    return this;
  }

  async call(name, args = {}, options = {}) {
    const result = await this.client.callTool({ name, arguments: args }, options);
    return result.content[0].text;
  }
}

const scenarios = {
  // Two conversations of one client at once, each by the handle that its first call was given. The
  // client sends handles in a header as well, since the schemas say so.
  async handles(url) {
    const carol = await new User("carol", { pin: REVISION }).connect(url);
    await carol.client.listTools();
    const talk = async (by) => {
      const first = await carol.client.callTool({ name: "count", arguments: { by } });
      const counts = [first.content[0].text];
      const session = first._meta[SESSION].handle;
      for (let turn = 1; turn < 10; turn += 1) counts.push(await carol.call("count", { by, session }));
      counts.push(await carol.call("greet", { session }));
      await carol.call("session_close", { session });
      const late = await carol.client.callTool({ name: "count", arguments: { by, session } });
      return { counts, late: late.isError };
    };
    const [ones, hundreds] = await Promise.all([talk(1), talk(100)]);
    await carol.client.close();
    return { ones, hundreds, errors: carol.errors };
  },

  // One user of the server that asks and tells everything.
  async everything(url) {
    const dave = await new User("dave", "auto").connect(url);
    const { client } = dave;
    const changes = await client.listen({
      toolsListChanged: true,
      resourceSubscriptions: ["test://watched-resource"],
    });
    await dave.call("test_trigger_resource_updated");
    await dave.wasUpdated;
    await dave.call("test_trigger_list_changed", { kind: "tools" });
    const stopping = new AbortController();
    const waited = await dave
      .call("test_wait", { name: "dave" }, { signal: stopping.signal, onprogress: () => stopping.abort() })
      .catch(() => "aborted");
    const progress = [];
    await dave.call("test_tool_with_progress", {}, { onprogress: (told) => progress.push(told.progress) });
    const completing = {
      ref: { type: "ref/prompt", name: "test_prompt_with_arguments" },
      argument: { name: "arg1", value: "par" },
    };
    const prompt = await client.getPrompt({ name: "test_input_required_result_prompt" });
    const seen = {
      era: client.getNegotiatedProtocolVersion(),
      server: client.getServerVersion().name,
      updated: dave.updated,
      listChanged: await dave.hasChanged,
      waited,
      cancelled: await dave.call("test_cancelled", { name: "dave" }),
      progress,
      overlapping: await Promise.all(
        ["first", "second"].map((message) => dave.call("test_elicitation", { message })),
      ),
      sampled: await dave.call("test_sampling", { prompt: "What?" }),
      sampledWithTools: JSON.parse(await dave.call("test_sampling_with_tools")).stopReason,
      roots: JSON.parse(await dave.call("test_list_roots"))[0].uri,
      atOnce: await dave.call("test_input_required_result_multiple_inputs"),
      rounds: await dave.call("test_input_required_result_multi_round"),
      prompt: prompt.messages[0].content.text,
      completions: (await client.complete(completing)).completion.values,
      header: await dave.call("test_header_argument", { region: "here" }),
      refused: await dave.call("no_such_tool").catch((error) => error.code),
      asked: dave.asked.toSorted(),
      errors: [...dave.errors],
    };
    await changes.close();
    await client.close();
    return seen;
  },
};

const [scenario, url] = process.argv.slice(2);
process.stdout.write(JSON.stringify(await scenarios[scenario](url)));
