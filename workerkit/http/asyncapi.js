// The messages of an AsyncAPI document: what the application receives, and what it publishes.
const follow = (reference) => resolved(pointed(own(reference, "$ref") || "") || reference);
const addressOf = (channel) => String(channel.address ?? channel.title ?? "unknown address");
const rows = (pairs) => make("table", {}, make("tbody", {}, pairs.filter(([, value]) => value !== undefined && value !== "")
  .map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, make("code", {}, shown(value)))))));

const messageView = (message) => {
  const about = entries(message).filter(([name]) => name.startsWith("x-")).map(([name, value]) => [name.slice(2), value]);
  const type = own(own(message.bindings, "amqp"), "messageType");
  return make("div", {}, make("p", {}, make("b", {}, String(message.title || message.name || "Message")),
    make("span", { class: "limits mono" }, String(message.contentType || api.defaultContentType || ""))),
  prose(message.description), rows([["type", type], ...about]),
  message.headers && lazy("nested", "Headers", () => schemaView(message.headers)),
  message.payload && [schemaView(message.payload), Object.keys(resolved(message.payload)).length > 0 && exampleView(message.payload, true)]);
};
const failureRows = (failures) => failures ? [
  ["invalid message", failures.onInvalid], ["exception", failures.onException],
  ["delays of retries", failures.retryDelays && failures.retryDelays.map((each) => `${each} s`).join(", ")],
  ["retry queues", failures.retryQueues && failures.retryQueues.join(", ")], ["dead-letter queue", failures.deadLetterQueue]] : [];
const operationView = (operation, channel) => {
  const reply = operation.reply;
  const { queue = {}, exchange = {} } = own(channel.bindings, "amqp") || {};
  const flags = ["durable", "exclusive", "autoDelete"].filter((name) => queue[name] || exchange[name]).join(", ");
  const hosts = list(channel.servers).map(follow).map((each) => `${each.protocol}://${each.host}`).join(", ");
  return make("div", { class: "inside two" }, make("div", {}, prose(operation.description),
    make("h3", {}, "Channel"), rows([["server", hosts], ["queue", queue.name], ["exchange", exchange.name], ["exchange type", exchange.type],
      ["routing key", channel["x-routing-key"]], ["virtual host", queue.vhost || exchange.vhost], ["flags", flags],
      ["HTTP method", own(own(operation.bindings, "http"), "method")], ["batches of", operation["x-batch-size"]],
      ...entries(channel["x-arguments"]),
      ...list(channel["x-bindings"]).map((each) => ["bound to", `${each.exchange} ${each.routingKey}`])]),
    operation["x-failures"] && [make("h3", {}, "Failures"), rows(failureRows(operation["x-failures"]))]),
  make("div", {}, make("h3", {}, operation.messages.length > 1 ? "Messages" : "Message"), list(operation.messages).map(follow).map(messageView),
    reply && [make("h3", {}, "Reply"), list(reply.messages).map(follow).map(messageView)]));
};
const drawMessages = () => {
  head([make("a", { href: "asyncapi.json" }, "asyncapi.json"), " · AsyncAPI ", String(api.asyncapi || "")]);
  const operations = entries(api.operations);
  for (const [action, title] of [["receive", "Receives"], ["send", "Publishes"]]) {
    const chosen = operations.filter(([, each]) => each.action === action);
    const within = chosen.length && group(title);
    for (const [id, operation] of chosen) {
      const channel = follow(operation.channel);
      const names = list(operation.messages).map(follow).map((each) => each.name).join(" ");
      card(within, { id, verb: action, title: addressOf(channel), label: addressOf(channel), text: [operation.title, operation.summary].filter(Boolean).join(": "),
        words: `${names} ${operation.description || ""}` }, () => operationView(operation, channel));
    }
  }
  if (!operations.length) find("main").append(make("p", {}, "No class receives messages, and none declares what it publishes."));
  drawTypes();
};
load("asyncapi.json", drawMessages);
