"""Django Channels with leakhunt mounted, for tests: consumers that leak as people's do.

    python channels_groups.py {uvicorn|daphne} {memory|redis|pubsub} --redis PORT

Every consumer joins the group ``lobby`` and the one named by its path, and of the paths:
/raise raises on the first message, /forget forgets group_discard, /good does not, /sync forgets
it in a thread, /stuck never comes back from its first message. GET /state tells the groups of
this process as JSON, GET /send?N sends N messages of 1000 bytes to ``lobby``, GET /close closes
the agent.
"""

import argparse
import asyncio
import json

import django
from django.conf import settings

import leakhunt
import leakhunt.asgi

parser = argparse.ArgumentParser()
parser.add_argument("server")
parser.add_argument("layer")
parser.add_argument("--redis", type=int)
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--evict-after", type=float, default=1.5)
options = parser.parse_args()

BACKENDS = {
    "memory": {"BACKEND": "channels.layers.InMemoryChannelLayer"},
    "redis": {"BACKEND": "channels_redis.core.RedisChannelLayer"},
    "pubsub": {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer"},
}
backend = BACKENDS[options.layer]
if options.layer != "memory":
    backend["CONFIG"] = {"hosts": [f"redis://127.0.0.1:{options.redis}"]}
settings.configure(
    INSTALLED_APPS=["channels"],
    SECRET_KEY="for tests",
    ALLOWED_HOSTS=["*"],
    CHANNEL_LAYERS={"default": backend},
)
django.setup()

from asgiref.sync import async_to_sync  # noqa: E402
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402
from channels.routing import ProtocolTypeRouter  # noqa: E402

agent = leakhunt.Agent(evict_after=options.evict_after, breaker_share=1.0)
evicted = []


@agent.on_evict
def note(conn, reason):
    evicted.append([str(reason), sorted(conn.rooms)])


class Consumer(AsyncWebsocketConsumer):
    async def connect(self):
        self.path = self.scope["path"].strip("/")
        await self.channel_layer.group_add("lobby", self.channel_name)
        await self.channel_layer.group_add(self.path, self.channel_name)
        await self.accept()
        await self.send(text_data="joined")

    async def receive(self, text_data=None, bytes_data=None):
        if self.path == "raise":
            raise RuntimeError("the client asked for it")
        if self.path == "stuck":
            await asyncio.Event().wait()
        if text_data == "rooms":
            await self.send(text_data=json.dumps(sorted(leakhunt.current().rooms)))

    async def disconnect(self, code):
        if self.path == "good":
            for group in ("lobby", self.path):
                await self.channel_layer.group_discard(group, self.channel_name)

    async def news(self, event):
        await self.send(text_data=event["text"])


class InAThread(WebsocketConsumer):
    def connect(self):
        add = async_to_sync(self.channel_layer.group_add)
        add("lobby", self.channel_name)
        add("sync", self.channel_name)
        self.accept()
        self.send(text_data="joined")


consumer, in_a_thread = Consumer.as_asgi(), InAThread.as_asgi()


async def websocket(scope, receive, send):
    await (in_a_thread if scope["path"] == "/sync" else consumer)(scope, receive, send)


def groups():
    layer = get_channel_layer()
    if options.layer == "pubsub":
        layer = layer._get_layer()
    known = getattr(layer, "groups", {})
    return {name.removeprefix("asgi__group__"): len(known[name]) for name in known}


async def http(scope, receive, send):
    if scope["path"] == "/send":
        for _ in range(int(scope["query_string"])):
            message = {"type": "news", "text": "x" * 1000}
            await get_channel_layer().group_send("lobby", message)
    elif scope["path"] == "/close":
        await agent.aclose()
    counts = agent.statistics()
    told = {
        "groups": groups(),
        "rooms": counts.rooms,
        "memberships": counts.memberships,
        "closed": dict(counts.closed),
        "evicted": evicted,
        "dropped": counts.dropped,
        "queued": {c.peer: [c.queued_messages, c.queued_bytes] for c in agent.connections},
        "tasks": sum("_leave" in repr(task) for task in asyncio.all_tasks()),
    }
    head = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})


application = leakhunt.asgi.Middleware(
    ProtocolTypeRouter({"websocket": websocket, "http": http}), agent=agent
)

if options.server == "uvicorn":
    import uvicorn

    uvicorn.run(
        application,
        port=options.port,
        log_level="critical",
        ws_ping_interval=None,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
else:
    from daphne.server import Server

    where = f"tcp:{options.port}:interface=127.0.0.1"
    Server(application, endpoints=[where], ping_interval=0, verbosity=0).run()
