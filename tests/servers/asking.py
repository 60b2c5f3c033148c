"""The everything server's tools that ask the client: for a form, a model's answer, or its roots.

Those named `test_input_required_result_...` are the ones that the conformance suite's scenarios of
multi-round-trip requests call, with the keys that it expects. Neighbours: `everything` serves them.
"""

import json
from typing import Any

import anyio
import mcp_types as types
from mcp.shared.exceptions import MCPError, UrlElicitationRequiredError

from .tools import STEP, Call, Content, Question, image, is_handshake, takes, text, tool


def form(message: str, schema: dict[str, Any]) -> Question[types.ElicitResult]:
    """Has the user fill in a form."""
    params = types.ElicitRequestFormParams(message=message, requested_schema=schema)
    return Question(types.ElicitRequest(params=params), types.ElicitResult)


def sample(prompt: str, max_tokens: int = 100) -> Question[types.CreateMessageResult]:
    """Has the client's model complete a prompt."""
    message = types.SamplingMessage(role="user", content=text(prompt))
    params = types.CreateMessageRequestParams(messages=[message], max_tokens=max_tokens)
    return Question(types.CreateMessageRequest(params=params), types.CreateMessageResult)


def roots() -> Question[types.ListRootsResult]:
    return Question(types.ListRootsRequest(params=types.RequestParams()), types.ListRootsResult)


def said(result: types.CreateMessageResult) -> str:
    return result.content.text if isinstance(result.content, types.TextContent) else "no text"


def filled(result: types.ElicitResult) -> str:
    return f"action={result.action}, content={json.dumps(result.content)}"


# For clients of either era


@tool("Has the client's model complete a prompt", takes(prompt="What the model is told"))
async def test_sampling(call: Call) -> Content | str:
    return f"LLM response: {said(await call.ask(sample(call.arguments['prompt'])))}"


@tool("Has the client's model look at images, with a tool at hand and one that was used before")
async def test_sampling_with_tools(call: Call) -> Content | str:
    weather = types.Tool(
        name="weather", description="The weather there", input_schema=takes(city="Where")
    )
    used = types.ToolUseContent(id="use-1", name="weather", input={"city": "Køln"})
    sky: list[types.ContentBlock] = [text("Rain, as you see"), image()]
    seen = types.ToolResultContent(
        tool_use_id="use-1", content=sky, structured_content={"degrees": 4.0}
    )
    params = types.CreateMessageRequestParams(
        messages=[
            types.SamplingMessage(role="user", content=[text("Where is this?"), image()]),
            types.SamplingMessage(role="assistant", content=[text("I look at the sky"), used]),
            types.SamplingMessage(role="user", content=[seen]),
        ],
        model_preferences=types.ModelPreferences(
            hints=[types.ModelHint(name="a-model")], cost_priority=0.5, speed_priority=1.0
        ),
        system_prompt="Look closely.",
        temperature=0.25,
        max_tokens=200,
        stop_sequences=["\n\n"],
        metadata={"of-the-provider": [None, 1.5]},
        tools=[weather],
        tool_choice=types.ToolChoice(mode="required"),
    )
    question = Question(
        types.CreateMessageRequest(params=params), types.CreateMessageResultWithTools
    )
    result = await call.ask(question)
    return result.model_dump_json(by_alias=True, exclude_none=True)


@tool("Asks the user for a name and an address", takes(message="What the user is told"))
async def test_elicitation(call: Call) -> Content | str:
    schema = takes(username="The user's name", email="The user's e-mail address")
    return f"User response: {filled(await call.ask(form(call.arguments['message'], schema)))}"


@tool("Asks with a form whose fields have defaults")
async def test_elicitation_sep1034_defaults(call: Call) -> Content | str:
    statuses = ["active", "inactive", "pending"]
    properties: dict[str, Any] = {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": statuses, "default": "active"},
        "verified": {"type": "boolean", "default": True},
    }
    schema = {"type": "object", "properties": properties}
    return f"Elicitation completed: {filled(await call.ask(form('Check these values', schema)))}"


@tool("Asks with a form that has every kind of enumeration")
async def test_elicitation_sep1330_enums(call: Call) -> Content | str:
    plain = ["option1", "option2", "option3"]
    titled = [{"const": f"value{n}", "title": f"Choice {n}"} for n in (1, 2, 3)]
    legacy = {"enum": ["opt1", "opt2", "opt3"], "enumNames": ["One", "Two", "Three"]}
    properties: dict[str, Any] = {
        "untitledSingle": {"type": "string", "enum": plain},
        "titledSingle": {"type": "string", "oneOf": titled},
        "legacyEnum": {"type": "string", **legacy},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": plain}},
        "titledMulti": {"type": "array", "items": {"anyOf": titled}},
    }
    schema = {"type": "object", "properties": properties}
    return f"Elicitation completed: {filled(await call.ask(form('Choose', schema)))}"


def visit(elicitation_id: str) -> types.ElicitRequestURLParams:
    url = f"https://example.com/visit/{elicitation_id}"
    return types.ElicitRequestURLParams(
        message="Please visit this page", url=url, elicitation_id=elicitation_id
    )


@tool(
    "Sends the user to a page; tells a client of the handshake era when the visit is over",
    takes(elicitationId="The id of the visit"),
)
async def test_elicitation_url(call: Call) -> Content | str:
    params = visit(call.arguments["elicitationId"])
    result = await call.ask(Question(types.ElicitRequest(params=params), types.ElicitResult))
    if result.action == "accept" and is_handshake(call.ctx):
        await anyio.sleep(STEP)
        await call.ctx.session.send_elicit_complete(
            call.arguments["elicitationId"], call.ctx.request_id
        )
    return f"Visit: action={result.action}"


@tool(
    "Fails with the error that names a page to visit first",
    takes(elicitationId="The id of the visit"),
)
async def test_elicitation_url_required(call: Call) -> Content | str:
    raise UrlElicitationRequiredError([visit(call.arguments["elicitationId"])])


@tool("Reports the client's roots as JSON")
async def test_list_roots(call: Call) -> Content | str:
    result = await call.ask(roots())
    return json.dumps([root.model_dump(mode="json", exclude_none=True) for root in result.roots])


# For the scenarios of multi-round-trip requests


def name_form() -> Question[types.ElicitResult]:
    return form("What is your name?", takes(name="The user's name"))


def confirmation() -> Question[types.ElicitResult]:
    properties = {"ok": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": ["ok"]}
    return form("Please confirm", schema)


@tool("Asks for the user's name, then greets")
async def test_input_required_result_elicitation(call: Call) -> Content | str:
    result = await call.ask(name_form(), "user_name")
    return f"Hello, {(result.content or {}).get('name', 'whoever you are')}!"


@tool("Has the client's model name a capital")
async def test_input_required_result_sampling(call: Call) -> Content | str:
    return said(await call.ask(sample("What is the capital of France?"), "capital_question"))


@tool("Names the client's roots")
async def test_input_required_result_list_roots(call: Call) -> Content | str:
    result = await call.ask(roots(), "client_roots")
    return f"Roots: {', '.join(str(root.uri) for root in result.roots)}"


@tool("Asks for a confirmation; its first round has a state that must come back")
async def test_input_required_result_request_state(call: Call) -> Content | str:
    await call.ask(confirmation(), "confirm", stateful=True)
    return "state-ok"


@tool("Asks for a confirmation; does nothing for a client that alters the state")
async def test_input_required_result_tampered_state(call: Call) -> Content | str:
    await call.ask(confirmation(), "confirm", stateful=True)
    return "The state came back as it was."


@tool("Asks for a name, a greeting and the roots, all at once")
async def test_input_required_result_multiple_inputs(call: Call) -> Content | str:
    questions = {
        "user_name": name_form(),
        "greeting": sample("Generate a greeting", 50),
        "client_roots": roots(),
    }
    answers = await call.ask_all(questions, stateful=True)
    return f"{len(answers)} answers"


@tool("Asks for a name, then for a colour")
async def test_input_required_result_multi_round(call: Call) -> Content | str:
    first = await call.ask(
        form("Step 1: What is your name?", takes(name="The user's name")), "step1", stateful=True
    )
    second = await call.ask(
        form("Step 2: What is your favorite color?", takes(color="A colour")), "step2"
    )
    return f"{first.content} {second.content}"


@tool("Asks what the client says it can be asked: for a name, and for a greeting")
async def test_input_required_result_capabilities(call: Call) -> Content | str:
    known = call.ctx.session.client_capabilities or types.ClientCapabilities()
    questions: dict[str, Question[types.ElicitResult] | Question[types.CreateMessageResult]] = {}
    # A handshake is over and done with; behind a proxy its capabilities may be another client's.
    if known.elicitation is not None or is_handshake(call.ctx):
        questions["user_name"] = name_form()
    if known.sampling is not None or is_handshake(call.ctx):
        questions["greeting"] = sample("Generate a greeting", 50)
    answers = await call.ask_all(questions)
    return f"{len(answers)} answers"


async def asking_prompt(call: Call) -> str:
    """The text of the prompt `test_input_required_result_prompt`, which asks first."""
    schema = takes(context="The context")
    result = await call.ask(form("What context should the prompt use?", schema), "user_context")
    return f"Context: {json.dumps(result.content)}"


@tool("Cannot do without a model of the client's")
async def test_missing_capability(call: Call) -> Content | str:
    needs = types.ClientCapabilities(sampling=types.SamplingCapability())
    if not is_handshake(call.ctx) and not call.ctx.session.check_client_capability(needs):
        data = types.MissingRequiredClientCapabilityErrorData(required_capabilities=needs)
        raise MCPError(
            types.MISSING_REQUIRED_CLIENT_CAPABILITY,
            "This tool needs sampling",
            data.model_dump(by_alias=True, mode="json", exclude_none=True),
        )
    return said(await call.ask(sample("Say yes")))


@tool("Reports progress, then asks for the user's name")
async def test_streaming_elicitation(call: Call) -> Content | str:
    await call.ctx.session.report_progress(50, 100)
    await anyio.sleep(STEP)
    return filled(await call.ask(name_form(), "user_name"))
