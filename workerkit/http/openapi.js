// `/docs`: the operations of an OpenAPI document, each with a form that sends requests.
const VERBS = ["get", "put", "post", "delete", "options", "head", "patch"];
const MOST_SHOWN = 500000;
const IS_FORM = /^(multipart\/form-data|application\/x-www-form-urlencoded)/;
const JSON_TYPE = /[/+]json\b/;
// Kept in memory only: what the user enters for each security scheme.
const credentials = new Map();

const schemes = () => own(api.components, "securitySchemes") || {};
const servers = () => (list(api.servers).length ? api.servers : [{ url: "/" }]).map((each) => {
  try { return new URL(each.url, location.href).href.replace(/\/$/, ""); } catch { return location.origin; }
});

// ---- Authorization ----
const alternativesOf = (operation) => list(operation.security || api.security)
  .map((each) => Object.keys(each).filter((name) => own(schemes(), name)));
const kindOf = (name) => {
  const { type, scheme } = resolved(own(schemes(), name));
  return type === "http" && String(scheme).toLowerCase() === "basic" ? "basic" : type === "apiKey" ? "key" : "bearer";
};
const requirement = (operation) => list(operation.security || api.security).map((each) => entries(each)
  .map(([name, scopes]) => name + (list(scopes).length ? ` (${scopes.join(", ")})` : "")).join(" and ")).filter(Boolean).join(" or ");
const authorize = (operation, request) => {
  const found = alternativesOf(operation);
  const chosen = found.find((names) => names.length && names.every((name) => credentials.get(name))) || [];
  for (const name of chosen) {
    const scheme = resolved(schemes()[name]), secret = credentials.get(name);
    if (kindOf(name) === "bearer") request.headers.push(["Authorization", `Bearer ${secret}`]);
    else if (kindOf(name) === "basic") request.headers.push(["Authorization", "Basic " + base64(secret)]);
    else if (scheme.in === "header") request.headers.push([scheme.name, secret]);
    else if (scheme.in === "query") request.query.push([scheme.name, secret]);
    else request.cookies.push([scheme.name, secret]);
  }
};
const hasCookies = (operation) => parametersOf(operation).some((each) => each.in === "cookie")
  || alternativesOf(operation).flat().some((name) => resolved(schemes()[name]).in === "cookie");
const base64 = (text) => btoa(String.fromCharCode(...new TextEncoder().encode(text)));
const authorizeDialog = () => {
  const rows = Object.keys(schemes()).map((name) => {
    const scheme = resolved(schemes()[name]);
    const id = uniqueId(`credential-${name}`);
    const input = make("input", { id, type: "password", autocomplete: "off" });
    input.value = credentials.get(name) || "";
    input.addEventListener("input", () => credentials.set(name, input.value));
    const where = { key: `${scheme.in} ${scheme.name}`, basic: "user:password", bearer: "bearer token" }[kindOf(name)];
    // One form for each: browsers take several passwords of a form for those of one account.
    return make("form", { method: "dialog", class: "field" }, make("label", { for: id }, name, make("span", { class: "limits" }, where)), prose(scheme.description), input);
  });
  const dialog = make("dialog", { "aria-label": "Authorize" }, make("h2", {}, "Authorize"),
    make("p", { class: "soft" }, "Kept in the memory of this page only, and sent with the requests that require it."),
    rows, make("form", { method: "dialog" }, make("button", { class: "main" }, "Done")));
  document.body.append(dialog);
  find("authorize").hidden = rows.length === 0;
  find("authorize").addEventListener("click", () => dialog.showModal());
};

// ---- Inputs ----
const labelled = (name, note, control, description) => {
  control.id = uniqueId(`input-${name}`);
  return make("div", { class: "field" }, make("label", { for: control.id }, make("code", {}, name),
    make("span", { class: "limits" }, note)), prose(description), control);
};
// The schema of a text: no form and no parameter can contain null.
const withoutNull = (schema) => {
  const full = resolved(schema);
  const left = alternatives(full).filter((each) => resolved(each).type !== "null");
  return left.length === 1 ? { ...full, anyOf: undefined, oneOf: undefined, ...resolved(left[0]) } : full;
};
const isFile = (schema) => {
  const full = withoutNull(schema);
  const items = full.type === "array" ? resolved(full.items) : full;
  return items.format === "binary" || (items.type === "string" && "contentMediaType" in items && !("contentEncoding" in items));
};
// An input for a value of a schema, and a function that returns its texts; none if it is empty.
const inputFor = (schema, required, value) => {
  const full = withoutNull(schema);
  if (isFile(schema)) {
    const control = make("input", { type: "file", multiple: full.type === "array", required });
    return [control, () => [...control.files]];
  }
  const choices = full.type === "boolean" ? [true, false] : list(full.enum);
  const text = value === undefined || value === null ? "" : shown(value);
  if (choices.length && choices.length <= 200) {
    const control = make("select", {}, !required && make("option", { value: "" }), choices.map((each) => make("option", {}, shown(each))));
    control.value = text;
    return [control, () => (control.value ? [control.value] : [])];
  }
  if (full.type === "array") {
    const control = make("textarea", { rows: "2", placeholder: "one value per line" });
    control.value = list(value).map(shown).join("\n");
    return [control, () => control.value.split("\n").filter(Boolean)];
  }
  const control = make("input", { type: "text", required, autocomplete: "off", spellcheck: "false" });
  control.value = text;
  return [control, () => (control.value ? [control.value] : [])];
};
const parametersOf = (operation) => list(operation.parameters).map(resolved);
const bodyInputs = (content) => {
  const types = Object.keys(content);
  const area = make("div", {});
  let read = () => null;
  const choose = (type) => {
    const media = content[type], schema = media.schema || {};
    if (IS_FORM.test(type)) {
      const inputs = entries(resolved(schema).properties).map(([name, each]) => {
        const required = list(resolved(schema).required).includes(name);
        const value = isFile(each) || !required ? resolved(each).default : example(each);
        const [control, values] = inputFor(each, required, value);
        return { name, values, row: labelled(name, typeText(each) + (required ? ", required" : ""), control, resolved(each).description) };
      });
      area.replaceChildren(...inputs.map((each) => each.row));
      read = () => ({ type, form: inputs.flatMap(({ name, values }) => values().map((value) => [name, value])) });
    } else if (isFile(schema)) {
      const control = make("input", { type: "file" });
      area.replaceChildren(labelled("body", type, control));
      read = () => ({ type, file: control.files[0] });
    } else {
      const control = make("textarea", { spellcheck: "false" });
      const given = media.example ?? example(schema);
      control.value = JSON_TYPE.test(type) || typeof given !== "string" ? JSON.stringify(given, null, 2) : given;
      control.rows = Math.min(control.value.split("\n").length + 1, 20);
      area.replaceChildren(labelled("body", type, control));
      read = () => control.value && { type, text: control.value };
    }
  };
  choose(types[0]);
  const select = make("select", { "aria-label": "Content type of the body" }, types.map((each) => make("option", {}, each)));
  select.addEventListener("change", () => choose(select.value));
  return { element: [types.length > 1 && select, area], read: () => read() };
};

// ---- Requests ----
const requestOf = (verb, path, operation, server, inputs, body) => {
  const request = { method: verb.toUpperCase(), headers: [], query: [], cookies: [], body };
  let route = path;
  for (const { parameter, values } of inputs) {
    const given = values().map((value) => [parameter.name, value]);
    // As a function: `$&` in a value is no pattern.
    if (parameter.in === "path") route = route.replaceAll(`{${parameter.name}}`, () => encodeURIComponent(given.map(([, value]) => value).join(",")));
    else if (parameter.in === "query") request.query.push(...given);
    else if (parameter.in === "cookie") request.cookies.push(...given);
    else request.headers.push(...given);
  }
  authorize(operation, request);
  if (body && !(body.form && /^multipart/.test(body.type))) request.headers.push(["Content-Type", body.type]);
  const query = new URLSearchParams(request.query).toString();
  request.url = server + route + (query ? "?" + query : "");
  return request;
};
const encoded = (body) => {
  if (!body) return undefined;
  if (!body.form) return body.file || body.text;
  if (!/^multipart/.test(body.type)) return new URLSearchParams(body.form.filter(([, value]) => typeof value === "string"));
  const data = new FormData();
  for (const [name, value] of body.form) data.append(name, value);
  return data;
};

const quoted = (text) => "'" + String(text).replaceAll("'", "'\\''") + "'";
const curlOf = ({ method, url, headers, cookies, body }) => {
  const found = [`curl ${method === "HEAD" ? "--head" : "-X " + method} --globoff ${quoted(new URL(url).href)}`];
  for (const [name, value] of headers) found.push("-H " + quoted(value === "" ? `${name};` : `${name}: ${value}`));
  if (cookies.length) found.push("-b " + quoted(cookies.map((each) => each.join("=")).join("; ")));
  if (body && body.form)
    for (const [name, value] of body.form) {
      if (typeof value !== "string") found.push("-F " + quoted(`${name}=@"${value.name.replace(/["\\]/g, "\\$&")}"`));
      else found.push((/^multipart/.test(body.type) ? "--form-string " : "--data-urlencode ") + quoted(`${name}=${value}`));
    }
  else if (body && body.file) found.push("--data-binary " + quoted("@" + body.file.name));
  else if (body && body.text !== undefined) found.push("--data-raw " + quoted(body.text));
  return found.join(" \\\n  ");
};

// The body is displayed while it arrives: a stream of events has no end.
const receive = async (response, output) => {
  const type = response.headers.get("content-type") || "";
  const isText = type === "" || /text|json|xml|yaml|script|urlencoded/i.test(type);
  const isStream = /event-stream/.test(type);
  const chunks = [], decoder = new TextDecoder();
  let size = 0, text = "";
  if (response.body) {
    const reader = response.body.getReader();
    for (let step = await reader.read(); !step.done; step = await reader.read()) {
      size += step.value.length;
      if (!isText) { chunks.push(step.value); continue; }
      if (text.length > MOST_SHOWN && !isStream) continue;
      text += decoder.decode(step.value, { stream: true });
      if (isStream) output.textContent = text = text.slice(-MOST_SHOWN);
    }
  }
  if (!isText) {
    const url = URL.createObjectURL(new Blob(chunks, { type: "application/octet-stream" }));
    output.replaceChildren(make("a", { href: url, download: "body" }, `Save ${size} bytes`));
  } else output.replaceChildren(...(JSON_TYPE.test(type) ? jsonView(text) : [text.slice(0, MOST_SHOWN)]));
  return size;
};
const tryIt = (verb, path, operation) => {
  const inputs = parametersOf(operation).map((parameter) => {
    const schema = parameter.schema || {}, full = resolved(schema);
    const value = parameter.example ?? (parameter.required ? example(schema) : full.default);
    const [control, values] = inputFor(schema, parameter.required && parameter.in !== "cookie", value);
    const note = [parameter.in, typeText(schema), parameter.required && "required"].filter(Boolean).join(", ");
    return { parameter, values, row: labelled(parameter.name, note, control) };
  });
  const requestBody = resolved(operation.requestBody);
  const body = Object.keys(requestBody.content || {}).length ? bodyInputs(requestBody.content) : null;
  const server = make("select", { "aria-label": "Server" }, servers().map((each) => make("option", {}, each)));
  const request = () => requestOf(verb, path, operation, server.value, inputs, body && body.read());
  const output = codeBlock("Body of the response");
  const status = make("p", { role: "status" });
  const headers = make("dl", {});
  const result = make("div", { hidden: true }, make("details", { class: "nested" }, make("summary", {}, "Headers"), headers), output);
  const stop = make("button", { type: "button", hidden: true }, "Stop");
  const send = make("button", { class: "main" }, "Send");

  const perform = async () => {
    const abort = new AbortController();
    const started = performance.now();
    const elapsed = () => `${Math.round(performance.now() - started)} ms`;
    stop.onclick = () => abort.abort();
    stop.hidden = false;
    send.disabled = true;
    output.replaceChildren();
    status.textContent = "Sending…";
    let line = "";
    try {
      const wanted = request();
      const response = await fetch(wanted.url, { method: wanted.method, headers: wanted.headers, body: encoded(wanted.body), signal: abort.signal, cache: "no-store" });
      line = `${response.status} ${response.statusText} · ${elapsed()}`;
      status.className = response.ok || response.status === 304 ? "good" : "bad";
      status.textContent = line;
      headers.replaceChildren(...[...response.headers].map(([name, value]) => make("div", {}, make("code", {}, `${name}: ${value}`))));
      result.hidden = false;
      status.textContent = line + ` · ${await receive(response, output)} bytes`;
    } catch (error) {
      status.className = "bad";
      status.textContent = abort.signal.aborted ? `${line} · stopped after ${elapsed()}` : `No response: ${error.message}`;
    } finally {
      stop.hidden = true;
      send.disabled = false;
    }
  };
  return make("form", { class: "try", onsubmit: (event) => { event.preventDefault(); perform(); } },
    make("h3", {}, "Try it out"), servers().length > 1 && server, inputs.map((each) => each.row), body && body.element,
    hasCookies(operation) &&
      make("p", { class: "soft" }, "A browser sends its own cookies; those entered here are for curl."),
    make("div", { class: "row" }, send, stop, copyButton("Copy as curl", () => curlOf(request()))), status, result);
};

// ---- The document ----
const contentView = (content) => entries(content).flatMap(([type, media]) => [
  make("p", { class: "mono soft" }, type), ...(media.schema ? [...schemaView(media.schema), !IS_FORM.test(type) && exampleView(media.schema)] : [])]);
const responseView = ([status, found]) => {
  const response = resolved(found);
  const text = [make("b", { class: /^[123]/.test(status) ? "good" : /^[45]/.test(status) ? "bad" : "" }, status), " ", String(response.description || "")];
  return entries(response.content).length ? lazy("response", text, () => contentView(response.content)) : make("p", { class: "response" }, text);
};
const operationView = (verb, path, operation) => {
  const found = parametersOf(operation);
  const body = resolved(operation.requestBody);
  return make("div", { class: "inside two" }, make("div", {}, prose(operation.description),
    requirement(operation) && make("p", {}, "Requires ", make("code", {}, requirement(operation))),
    found.length > 0 && [make("h3", {}, "Parameters"), fields(found.map((each) =>
      ({ label: each.name, schema: { ...each.schema, description: each.description }, required: each.required, code: true, note: each.in })))],
    body.content && [make("h3", {}, "Body"), contentView(body.content)],
    make("h3", {}, "Responses"), entries(operation.responses).map(responseView)),
  tryIt(verb, path, operation));
};
const drawOperations = () => {
  head([make("a", { href: "openapi.json" }, "openapi.json"), " · OpenAPI ", String(api.openapi || "")]);
  const operations = entries(api.paths).flatMap(([path, item]) => VERBS.filter((verb) => own(item, verb)).map((verb) => [path, verb, item[verb]]));
  const tagged = new Set(list(api.tags).map((tag) => tag.name));
  const others = operations.some(([, , each]) => !list(each.tags).some((tag) => tagged.has(tag)));
  for (const tag of [...list(api.tags), ...(others ? [{ name: "Other" }] : [])]) {
    const within = group(String(tag.name), tag.description);
    for (const [path, verb, operation] of operations) {
      const [first] = [...list(operation.tags).filter((each) => tagged.has(each)), "Other"];
      if (first !== tag.name) continue;
      const marks = [operation.deprecated && "deprecated", alternativesOf(operation).some((names) => names.length) && "authorization"];
      card(within, { id: operation.operationId || `${verb}-${path}`, verb, title: path, text: operation.summary, words: operation.description,
        marks }, () => operationView(verb, path, operation));
    }
  }
  drawTypes();
  authorizeDialog();
};
load("openapi.json", drawOperations);
