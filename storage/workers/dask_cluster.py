"""Workers that are processes of a Dask cluster: one of this run (`dask_own`), or one that exists.

Dask is used as what it is: a queue that knows which processes live. A run has a few calls in it at a time, however many
items there are, and lets go of a result as soon as it has it: otherwise Dask would compute it again when the worker
that holds it dies.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import queue
import secrets
import ssl
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures import CancelledError as Lost
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from storage.errors import ConfigError, IdxflowError, WorkersFailed
from storage.files import WAITING
from storage.runtime import cancellation
from storage.runtime.progress import advance, counted_off
from storage.words import counted
from storage.workers import dask_remote, reach
from storage.workers.address import CERTIFICATES, Cluster
from storage.workers.dask_own import SEND_SECONDS, OwnCluster
from storage.workers.dask_remote import Answer
from storage.workers.fingerprint import Fingerprint, Loaded, differences, named
from storage.workers.here import Here
from storage.workers.protocol import Survey

if TYPE_CHECKING:
    from distributed import Client
    from distributed.security import Security

T = TypeVar("T")
R = TypeVar("R")

PER_THREAD = 2
"""Calls in the cluster for each of its threads: one that is computed, one that waits to be next."""
MOST_DEATHS = 3
"""How many workers may die while they compute an item before it is given up."""
_MOST_STOPS = 20
"""How many may be shut down while they do."""
_CONNECT_SECONDS = 10.0
_SOON_SECONDS = 0.5
"""After which a run that is not connected yet looks whether there is anybody."""
_LOOK_SECONDS = 0.2
_ASK_SECONDS = 0.5
_SAY_SECONDS = 2.0
"""After which a run says that it waits for workers."""
_CLOSE_SECONDS = 1.0
_MODULE = f"__import__({dask_remote.__name__!r}, fromlist=['compute'])"
_COMPUTE = f"{_MODULE}.compute(*arguments)"
_DESCRIBE = f"{_MODULE}.describe"
"""What a worker evaluates. Not a reference to the function: a worker that has none would end when it receives one."""

_log = logging.getLogger(__name__)


class Dask:
    """Workers of a Dask cluster (`protocol.Workers`). Nothing of Dask is imported before there are several items.

    Args:
        wish: how many processes to start, or the cluster that exists.
        patience: for how many seconds to wait for workers if there are none, or for an answer of the scheduler.
    """

    def __init__(self, wish: int | Cluster, patience: float) -> None:
        self._wish, self._patience = wish, patience
        if isinstance(wish, Cluster) and wish.encrypted and not wish.ca:
            # Otherwise the files have been looked at.
            _security(wish)
        self._turn = threading.Lock()
        self._session: _Session | None = None
        self._beginning: threading.Thread | None = None
        self._modules: tuple[str, ...] = ()
        self._loaded = Loaded(tuple(sys.modules))

    @property
    def count(self) -> int:
        """How many processes compute, or would if there were something to compute; of a cluster that exists, now."""
        if isinstance(self._wish, int):
            return self._wish
        return len(self.session().threads)

    def each(self, function: Callable[[T], R], items: Sequence[T], doing: str) -> Iterator[tuple[int, R]]:
        """Have the cluster call `function` with each item (see `protocol.Workers`)."""
        if len(items) < 2:
            yield from Here().each(function, items, doing)
            return
        code = self.fingerprint(function.__module__)
        calls = _Calls(self.session(), _name(function), code, doing)
        try:
            with counted_off(doing, len(items)) as count:
                for index, result in calls.results(items):
                    count()
                    yield index, result
        finally:
            calls.close()

    @property
    def elsewhere(self) -> bool:
        """Whether the cluster exists without this run."""
        return not isinstance(self._wish, int)

    def one(self, function: Callable[[T], R], item: T) -> R:
        """Have a worker that is elsewhere call `function` with an item (see `protocol.Workers`)."""
        if not self.elsewhere:
            return function(item)
        session, code = self.session(), self.fingerprint(function.__module__)
        calls = _Calls(session, _name(function), code, tells=True)
        try:
            ((_, result),) = calls.results([item])
        finally:
            calls.close()
        returned: R = result
        return returned

    def fingerprint(self, module: str) -> Fingerprint:
        """Return what this process computes the functions of a module with.

        Raises:
            WorkersFailed: files have changed since this process has loaded them.
        """
        own = self._loaded.fingerprint(module)
        if stale := own.stale:
            raise WorkersFailed(
                f"expected the code that this run began with; found changes in {named(stale)} since then; run again"
            )
        return own

    def session(self) -> _Session:
        """Return the connection to the cluster, which is opened first.

        Raises:
            WorkersFailed: the cluster cannot be reached.
        """
        with self._turn:
            if self._session is None:
                session = _Session(self._wish, self._patience, self._modules)
                try:
                    session.open()
                except BaseException:
                    session.close()
                    raise
                self._session = session
            return self._session

    def begin(self, modules: tuple[str, ...]) -> None:
        """Start the processes of this run in another thread; a cluster that exists has started (`protocol.Workers`)."""
        if not self.elsewhere and not self._beginning:
            self._modules = modules
            # With the context, so that the end of the run ends this, too.
            self._beginning = threading.Thread(target=copy_context().run, args=(self._begin,), name="idxflow-begin")
            self._beginning.start()

    def _begin(self) -> None:
        # Who needs the workers tries again, and gets the error.
        with suppress(Exception, cancellation.Cancelled):
            self.session()
            for module in self._modules:
                self.fingerprint(module)

    def survey(self, modules: tuple[str, ...]) -> Survey:
        """Ask every worker what it would compute the functions of some modules with.

        Raises:
            WorkersFailed: they cannot be reached, or there are none.
        """
        ours = tuple(map(self.fingerprint, modules))
        session = self.session()
        while len(session.threads) < (self._wish if isinstance(self._wish, int) else 1):
            session.check()
            cancellation.sleep(_LOOK_SECONDS)
        answers = session.done(session.ask_all(f"{_DESCRIBE}({modules!r})"))
        different: dict[str, str] = {}
        for worker, answer in answers.items():
            if isinstance(answer, bytes):
                found = next(filter(None, map(differences, ours, pickle.loads(answer))), "")
            else:
                found = f"{type(answer).__name__}: {answer}"
            if found:
                different[f"the worker {worker.partition('://')[2]}"] = found
        return Survey(len(answers), different)

    def close(self) -> None:
        """Let go of the cluster; the processes that were started for this run end."""
        if self._beginning:
            self._beginning.join()
        with self._turn:
            session, self._session = self._session, None
        if session:
            session.close()


class _Session:
    """A connection to a cluster, in an event loop with a thread of its own."""

    def __init__(self, wish: int | Cluster, patience: float, modules: tuple[str, ...]) -> None:
        self.patience = patience
        self._wish, self._modules = wish, modules
        self.own: OwnCluster | None = None
        self.threads: dict[str, int] = {}
        """How many threads each worker has, by its address."""
        self.lines: dict[str, queue.SimpleQueue[tuple[str, int, bytes]]] = {}
        """Lines of the log that have arrived, for each group of calls."""
        self._where = "of this run" if isinstance(wish, int) else f"at {wish.address}"
        self._client: Client | None = None
        self._begun: dict[str, int] = {}
        """How many workers have begun each call whose item was on one that died."""
        self.deaths: dict[str, int] = {}
        """How many of them have died, by the keys of the items that are being computed."""
        self._answered = self._seen = time.monotonic()
        self._said = False
        self._loop = asyncio.new_event_loop()
        self._close_loop: Callable[[], None] = self._loop.close
        # What Dask leaves behind when it is closed.
        self._loop.set_exception_handler(lambda _, context: _log.debug("%s", context))
        self._asking: Future[None] | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="idxflow-workers")
        self._thread.start()

    def start(self, call: Coroutine[Any, Any, R]) -> Future[R]:
        """Begin what takes a while."""
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    def done(self, call: Coroutine[Any, Any, R]) -> R:
        """Do what takes a while.

        Raises:
            Cancelled: the run is being stopped.
        """
        future = self.start(call)
        try:
            while not wait([future], _LOOK_SECONDS).done:
                cancellation.check()
        except BaseException:
            future.cancel()
            raise
        return future.result()

    def open(self) -> None:
        """Connect to the cluster, after starting it if it is of this run."""
        _quiet()
        self.done(self._open())
        self._answered = self._seen = time.monotonic()
        self.done(self._ask())
        self._asking = self.start(self._keep_asking())

    async def _open(self) -> None:
        from distributed import Client

        address, security = await self._place()
        client = Client(
            address,
            asynchronous=True,
            set_as_default=False,
            security=security,
            timeout=_CONNECT_SECONDS,
            name="idxflow",
            # Results come through the scheduler: the workers may be behind it, and results are small.
            direct_to_workers=False,
        )
        # The same loop as Tornado has it, which leaves sockets in it if they could not be connected.
        self._close_loop = partial(client.loop.close, all_fds=True)
        try:
            self._client = await self._connected(asyncio.ensure_future(client), address)
        except (OSError, ValueError, ssl.SSLError) as error:
            with suppress(Exception):
                await client.close(timeout=_CLOSE_SECONDS)
            spoken = "unknown" if self.own else await reach.spoken(address)
            raise self._unreachable(error, spoken) from error
        self._client.scheduler_comm.interval = SEND_SECONDS
        # What other users of the cluster print on it is not for this run.
        for topic in ("print", "warn"):
            self._client.unsubscribe_topic(topic)
        # Dask forgets what it keeps of a topic of this name when the client has gone.
        self._client.subscribe_topic(self._client.id, self._hear)

    async def _connected(self, connecting: asyncio.Future[Client], address: str) -> Client:
        """Wait for a connection, for as long as there is somebody to connect to: Dask would try again and again."""
        await asyncio.wait([connecting], timeout=_SOON_SECONDS)
        # The run's own scheduler has no address for others.
        outside = self.own is None and not connecting.done()
        if outside and (refused := await reach.is_nobody_there(address)):
            connecting.cancel()
            raise refused
        return await connecting

    async def _place(self) -> tuple[str, Security]:
        """Return the address of the scheduler, which is started if it is of this run, and what to connect with."""
        if isinstance(self._wish, Cluster):
            return self._wish.address, _security(self._wish)
        self.own = OwnCluster(self._wish, self._modules)
        return await self.own.open()

    @property
    def client(self) -> Client:
        """The connection.

        Raises:
            WorkersFailed: there is none any more.
        """
        if not self._client:
            raise self.gone()
        return self._client

    def _unreachable(self, error: Exception, spoken: reach.Spoken) -> IdxflowError:
        encrypted = isinstance(self._wish, Cluster) and self._wish.encrypted
        if spoken == "plain" and encrypted:
            return WorkersFailed(
                f"expected a scheduler with TLS {self._where}; found one that does not use it; start it with "
                "certificates (docs/how-to/workers.md), or give its address as tcp://…"
            )
        if spoken == "tls" and not encrypted:
            return WorkersFailed(
                f"expected a scheduler without TLS {self._where}; found one that requires certificates; give its "
                f"address as tls://…, and set {', '.join(CERTIFICATES.values())} (docs/how-to/workers.md)"
            )
        causes = [error]
        while cause := causes[-1].__cause__ or causes[-1].__context__:
            causes.append(cause)  # type: ignore[arg-type]
        refused = next((each for each in causes if isinstance(each, ssl.SSLError)), None)
        if refused:
            return WorkersFailed(
                f"expected a scheduler with a certificate of the same authority {self._where}; found "
                f"{refused.reason or refused}; name the right files with IDXFLOW_WORKERS_CA, IDXFLOW_WORKERS_CERT and "
                "IDXFLOW_WORKERS_KEY"
            )
        return WorkersFailed(
            f"expected a Dask scheduler {self._where}; found that it cannot be reached ({causes[-1]}); start it "
            "(docs/how-to/workers.md), or correct the address"
        )

    async def ask_all(self, question: str) -> dict[str, Any]:
        """Return what each worker evaluates, or the error that it raises, by its address."""
        answers: dict[str, Any] = await self.client.run(eval, question, on_error="return")
        return answers

    def submit(self, arguments: tuple[Any, ...], key: str, what: str) -> Future[Answer]:
        """Begin a call of `dask_remote.compute` on any worker; cancelling the future stops it.

        Args:
            arguments: the first ones of the call.
            key: of the item.
            what: what people call the item.
        """
        return self.start(self._answer(arguments, key, what))

    async def _answer(self, arguments: tuple[Any, ...], key: str, what: str) -> Answer:
        """Return what a worker says, after trying again as often as workers may die with it.

        A worker that dies may have computed another item, while this one waited for it. So only deaths count after
        which a worker had said that it began.
        """
        from distributed.scheduler import KilledWorker

        stops = attempt = 0
        self.deaths[key] = 0
        while True:
            call, attempt = f"{key}-{attempt}", attempt + 1
            values = {"arguments": (*arguments, self.client.id, call)}
            future = self.client.submit(eval, _COMPUTE, values, key=call, pure=False)
            try:
                # If a request for a result is cancelled before Dask has sent it, all later ones of this client fail.
                answer: Answer = pickle.loads(await asyncio.shield(future))
                if not answer.stopped:
                    return answer
                stops += 1
            except KilledWorker:
                self.deaths[key] += self._begun.get(call, 0)
            finally:
                # Dask would compute it again if the worker that holds it died.
                future.release()
                self._begun.pop(call, None)
            if self.deaths[key] >= MOST_DEATHS or stops >= _MOST_STOPS:
                ended = max(self.deaths[key], stops)
                raise WorkersFailed(
                    f"expected a worker {self._where} to finish {what}; found that {ended} ended while they computed "
                    "it, perhaps because memory ran out; give the workers more memory, or look into their logs, then "
                    "run again: what is done is reused"
                )

    def _hear(self, event: tuple[float, Any]) -> None:
        """Take a line of a call; what else the scheduler has to say about this client is not for people."""
        message = event[1]
        if isinstance(message, list | tuple) and len(message) == 3:
            call, number, line = message
            if number == dask_remote.BEGUN:
                self._begun[call] = self._begun.get(call, 0) + 1
            elif waiting := self.lines.get(call.split("-")[1]):
                waiting.put((call, number, line))

    async def _ask(self) -> None:
        """Ask the scheduler which workers there are."""
        with suppress(OSError):
            self.threads = dict(await self.client.scheduler.ncores())
            self._answered = time.monotonic()
            if self.threads:
                self._seen = self._answered

    async def _keep_asking(self) -> None:
        while True:
            await asyncio.sleep(_ASK_SECONDS)
            await self._ask()

    def check(self, what: str = "") -> None:
        """Check that there is somebody to wait for.

        Args:
            what: what has not been computed yet, if that may be why there is nobody.

        Raises:
            WorkersFailed: the scheduler has gone, or there have been no workers for a while.
        """
        now = time.monotonic()
        if not self._client or self._client.status != "running" or now - self._answered > self.patience:
            raise self.gone()
        if self.own and not self.own.alive:
            self.tell_endings()
            raise WorkersFailed(
                f"expected {counted(self.own.count, 'worker')} {self._where}; found that all have ended, the last one "
                f"{self.own.last}{what and f', while they had {what}'}; run again with fewer, or with more memory: "
                "what is done is reused"
            )
        if self.threads:
            self._said = False
        elif now - self._seen > self.patience:
            raise WorkersFailed(
                f"expected workers {self._where}; found none for {self.patience:g} s; start some "
                "(docs/how-to/workers.md), then run again: what is done is reused"
            )
        elif now - self._seen > _SAY_SECONDS and not self._said:
            self._said = True
            _log.info("waiting for workers %s", self._where, extra=WAITING)

    def tell_endings(self) -> None:
        """Log which of the processes of this run have ended since the last call."""
        for ending in self.own.endings() if self.own else ():
            _log.warning("%s", ending)

    def gone(self) -> WorkersFailed:
        """Return the error for a scheduler that has gone."""
        return WorkersFailed(
            f"expected the Dask scheduler {self._where} until the end of the run; found that it has gone; start it "
            "again, then run again: what is done is reused"
        )

    def most(self) -> int:
        """Return how many calls may be in the cluster at a time."""
        return PER_THREAD * max(sum(self.threads.values()), self.own.count if self.own else 1)

    def close(self) -> None:
        """Let go of everything, in little more than a second."""
        if self.own:
            # First, so that its processes end meanwhile.
            self.own.let_go()
        wait([self.start(self._close())], _CLOSE_SECONDS)
        if self.own:
            self.own.end()
        wait([self.start(self._cancel_rest())], _CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._close_loop()

    async def _close(self) -> None:
        if self._asking:
            self._asking.cancel()
        if self._client:
            await self._client.close(timeout=_CLOSE_SECONDS)
        if self.own:
            await self.own.close()

    async def _cancel_rest(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Calls:
    """The calls of one function with several items.

    Args:
        doing: what is being done, for people.
        tells: whether to report here the progress that a call reports.
    """

    def __init__(
        self, session: _Session, function: str, code: Fingerprint, doing: str = "", tells: bool = False
    ) -> None:
        self._session, self._function, self._code, self._tells = session, function, code, tells
        self._doing, self._count = doing, 0
        self._id = secrets.token_hex(4)
        self._pending: dict[Future[Answer], int] = {}
        self._names: dict[int, str] = {}
        """What people call the items that are pending."""
        self._lines = session.lines[self._id] = queue.SimpleQueue()
        self._told: dict[str, set[int]] = {}
        """Numbers of the lines that were logged, of each call that has not ended."""
        self._over = set[str]()

    def results(self, items: Sequence[T]) -> Iterator[tuple[int, Any]]:
        """Yield the index of each item with its result, as calls end."""
        waiting, self._count = iter(enumerate(items)), len(items)
        errors: dict[int, Exception] = {}
        self._submit(waiting)
        while self._pending:
            for index, answer in self._ended():
                try:
                    result = self._result(answer)
                except Exception as error:
                    errors[index] = error
                    continue
                if not errors:
                    yield index, result
            if not errors:
                self._submit(waiting)
        if errors:
            raise errors[min(errors)]

    def _submit(self, waiting: Iterator[tuple[int, Any]]) -> None:
        while len(self._pending) < self._session.most():
            index, item = next(waiting, (-1, None))
            if index < 0:
                return
            arguments = (self._function, pickle.dumps(item), self._code.digest, self._tells)
            self._names[index] = self._called(index, item)
            call = self._session.submit(arguments, self._key(index), self._names[index])
            self._pending[call] = index

    def _key(self, index: int) -> str:
        return f"idxflow-{self._id}-{index}"

    def _suspects(self) -> str:
        """Return what people call the items with which workers died, or those that may be among them."""
        pending = sorted(self._pending.values())
        deadly = [index for index in pending if self._session.deaths.get(self._key(index))]
        return " or ".join(self._names[index] for index in (deadly or pending)[:PER_THREAD])

    def _called(self, index: int, item: object) -> str:
        """Return what people call an item: what it says, and which of the parts it is."""
        label = getattr(item, "label", "")
        part = f"part {index + 1:,} of {self._count:,} of `{self._doing}`" if self._doing else ""
        return f"{label} ({part})" if label and part else label or part or "its work"

    def _ended(self) -> Iterator[tuple[int, Answer]]:
        """Wait a little, and yield what has ended meanwhile."""
        done = wait(self._pending, _LOOK_SECONDS, FIRST_COMPLETED).done
        cancellation.check()
        self._tell()
        self._session.tell_endings()
        if not done:
            self._session.check(self._suspects())
        for future in done:
            index = self._pending.pop(future)
            del self._names[index], self._session.deaths[self._key(index)]
            yield index, self._received(future)

    def _received(self, future: Future[Answer]) -> Answer:
        try:
            return future.result()
        except IdxflowError:
            raise
        except Lost as error:
            raise self._session.gone() from error
        except Exception as error:
            raise WorkersFailed(
                f"expected a worker that can load idxflow; found {type(error).__name__}: {error}; install the same "
                "version of idxflow and of its libraries where the scheduler and the workers are, and start them again"
            ) from error

    def _result(self, answer: Answer) -> Any:
        if answer.differs:
            raise WorkersFailed(
                f"expected {answer.worker} to have the code and the libraries of this run; found "
                f"{differences(self._code, answer.differs)}; install the same there, and start the worker again"
            )
        self._tell_rest(answer)
        if answer.error:
            raise pickle.loads(answer.error)
        return pickle.loads(answer.result)

    def _tell(self) -> None:
        """Log what has arrived of the lines of the workers, and tell what they have told of their progress."""
        with suppress(queue.Empty):
            while True:
                call, number, line = self._lines.get_nowait()
                if call in self._over:
                    continue
                if number == dask_remote.PROGRESS:
                    advance(pickle.loads(line))
                elif number not in self._told.setdefault(call, set()):
                    self._told[call].add(number)
                    self._say(line)

    def _tell_rest(self, answer: Answer) -> None:
        """Log those lines of a call that has ended which have not arrived by themselves yet."""
        told = self._told.pop(answer.call, set())
        self._over.add(answer.call)
        for number, line in enumerate(answer.lines, 1):
            if number not in told:
                self._say(line)

    @staticmethod
    def _say(line: bytes) -> None:
        record = logging.makeLogRecord(pickle.loads(line))
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)

    def close(self) -> None:
        """Give up what has not ended."""
        for future in self._pending:
            future.cancel()
        del self._session.lines[self._id]


def _name(function: Callable[..., object]) -> str:
    """Return the name by which a worker imports a function.

    Raises:
        ValueError: it cannot.
    """
    name = f"{function.__module__}:{function.__qualname__}"
    if function.__module__ == "__main__" or "." in function.__qualname__:
        raise ValueError(f"expected a function of a module, by whose name a worker imports it; found {name}")
    return name


def _security(cluster: Cluster) -> Security:
    """Return what to connect to a cluster with: the files that the variables name, or Dask's own configuration.

    Raises:
        ConfigError: there are no certificates, or none that can be used.
    """
    from distributed.security import Security

    if not cluster.encrypted:
        return Security(require_encryption=False)
    files = {"tls_ca_file": cluster.ca, "tls_client_cert": cluster.cert, "tls_client_key": cluster.key}
    security = Security(require_encryption=True, **{name: file for name, file in files.items() if file})
    try:
        found = "none" if security.get_connection_args("client").get("ssl_context") is None else ""
    except (OSError, ValueError) as error:
        found = f"those of Dask's configuration, which cannot be used: {error}"
    if found:
        raise ConfigError(
            f"expected certificates for {cluster.address}; found {found}; set {', '.join(CERTIFICATES.values())} to "
            "the files that the scheduler was started with (docs/how-to/workers.md)"
        )
    return security


def _quiet() -> None:
    """Have Dask log nothing in this process: what people need to know is in the sentences of errors."""
    # It gives loggers of its own a handler that writes to standard error.
    import distributed

    own = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == distributed.__name__]
    for logger in map(logging.getLogger, own):
        logger.handlers[:] = [logging.NullHandler()]
        logger.propagate = False
