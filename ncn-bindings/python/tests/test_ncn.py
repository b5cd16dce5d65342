"""The package as programs use it, at a running devnet: NCN_GATEWAY and NCN_RPC say where."""

import asyncio
import gc
import json
import os
import pathlib
import sys
import threading
import time
import unittest

import ncn

ROOT = pathlib.Path(os.environ["NCN_ROOT"])
NETWORK = ncn.Network.devnet(os.environ["NCN_GATEWAY"], os.environ["NCN_RPC"])
SEVEN = (ROOT / "examples/data/7.png").read_bytes()


class FiveLines(unittest.TestCase):
    def test_a_verified_paid_answer(self):
        client = ncn.connect(NETWORK)
        answer = client.infer("digits", image=SEVEN)
        receipt = ncn.verify_receipt(answer.receipt.json)
        self.assertEqual((answer.text("label"), receipt.cost, receipt.request_id), ("7", answer.cost, answer.request_id))
        self.assertGreater(answer.cost, 0)
        self.assertEqual([kept.request_id for kept in client.receipts()], [answer.request_id])
        self.assertIn(answer.request_id, answer._repr_html_())


class Calls(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = ncn.connect(NETWORK, ncn.devnet_key(1))

    def fails(self, kind, call, *arguments, **named):
        with self.assertRaises(ncn.NcnError) as raised:
            call(*arguments, **named)
        self.assertEqual(raised.exception.kind, kind, raised.exception)
        return raised.exception

    def test_models_estimates_and_balances(self):
        (digits,) = self.client.models()
        self.assertEqual(digits.name, "digits")
        self.assertEqual(json.loads(digits.manifest)["name"], "digits")
        estimate = self.client.estimate("digits", image=SEVEN)
        self.assertTrue(0 < estimate.typical <= estimate.maximum)
        before = self.client.balance()
        cost = self.client.infer("digits", {"image": SEVEN}).cost
        self.assertEqual(self.client.balance(), before - cost)

    def test_values_of_numpy_and_pillow(self):
        import numpy
        from PIL import Image

        image = Image.open(ROOT / "examples/data/7.png")
        self.assertEqual(self.client.infer("digits", image=image).text("label"), "7")
        scores = self.client.infer("digits", image=SEVEN)["scores"]
        self.assertEqual((scores.dtype, scores.shape, int(scores.argmax())), (numpy.dtype("float32"), (1, 10), 7))
        self.fails(ncn.ErrorKind.INPUT, self.client.infer, "digits", image=numpy.zeros((2, 2), dtype=numpy.float32))
        with self.assertRaises(TypeError):
            self.client.infer("digits", image=numpy.zeros(2, dtype=numpy.complex64))

    def test_wrong_types_and_values_are_pythons_own_errors(self):
        for wrong in (7, None, object(), 1.5, ["7"]):
            with self.assertRaises(TypeError):
                self.client.infer("digits", image=wrong)
        for call in (
            lambda: self.client.infer(7, image=SEVEN),
            lambda: self.client.infer("digits", image=SEVEN, max_price=0.5),
            lambda: self.client.infer("digits", image=SEVEN, max_price=True),
            lambda: self.client.infer("digits", image=SEVEN, timeout="a minute"),
            lambda: self.client.balance(7),
            lambda: ncn.connect("http://127.0.0.1:1"),
            lambda: ncn.connect(NETWORK, key=7),
            lambda: ncn.connect(NETWORK, payment="channel"),
            lambda: ncn.connect(NETWORK, policy="no"),
            lambda: ncn.verify_receipt(7),
        ):
            with self.assertRaises(TypeError):
                call()
        for call in (
            lambda: self.client.infer("digits", image=SEVEN, max_price=-1),
            lambda: self.client.infer("digits", image=SEVEN, max_price=2**128),
            lambda: self.client.infer("digits", image=SEVEN, timeout=-1),
            lambda: ncn.connect(ncn.Network(["http://127.0.0.1:1"])),
        ):
            with self.assertRaises(ValueError):
                call()

    def test_errors_have_kinds(self):
        self.fails(ncn.ErrorKind.UNKNOWN_MODEL, self.client.infer, "nothing", image=SEVEN)
        self.fails(ncn.ErrorKind.INPUT, self.client.infer, "digits", image="text")
        self.fails(ncn.ErrorKind.TOO_EXPENSIVE, self.client.infer, "digits", image=SEVEN, max_price=1)
        self.fails(ncn.ErrorKind.TIMEOUT_TOO_SHORT, self.client.infer, "digits", image=SEVEN, timeout=1)
        self.fails(ncn.ErrorKind.KEY, ncn.connect, NETWORK, "no key")
        self.fails(ncn.ErrorKind.CONFIGURATION, ncn.connect, ncn.Network.devnet("nonsense"))
        gone = self.fails(ncn.ErrorKind.UNAVAILABLE, ncn.connect, ncn.Network.devnet("http://127.0.0.1:1"))
        self.assertTrue(gone.retryable and not gone.paid)
        other = ncn.Network([os.environ["NCN_GATEWAY"]], hash="0x" + "07" * 32)
        self.fails(ncn.ErrorKind.CONFIGURATION, ncn.connect, other, ncn.devnet_key(), ncn.Relayed())

    def test_payment_by_signature_and_out_of_a_channel(self):
        relayed = ncn.connect(ncn.Network.devnet(os.environ["NCN_GATEWAY"], None), ncn.devnet_key(2), ncn.Relayed())
        self.assertEqual(relayed.infer("digits", image=SEVEN).text("label"), "7")
        self.fails(ncn.ErrorKind.CONFIGURATION, relayed.balance)
        path = os.path.join(os.environ["NCN_FILES"], "channel.json")
        opened = self.client.channel_open(path, 10**18, days=7)
        self.assertEqual((opened.deposit, opened.spent), (10**18, 0))
        payer = ncn.connect(NETWORK, ncn.devnet_key(1), ncn.Channel(path))
        costs = sum(payer.infer("digits", image=SEVEN).cost for _ in range(3))
        self.assertEqual(payer.channel_show().spent, costs)
        self.assertEqual(payer.channel_topup(10**17, days=8, path=path).deposit, 11 * 10**17)
        self.fails(ncn.ErrorKind.CONFIGURATION, ncn.connect, NETWORK, ncn.devnet_key(2), ncn.Channel(path))
        self.assertEqual(payer.channel_close(), 11 * 10**17 - costs)

    def test_keys_and_policies_of_ones_own(self):
        threads, offers = [], []

        class Broken(ncn.Signer):
            def address(self):
                return self_address

            def sign_digest(self, digest):
                threads.append(threading.current_thread())
                return bytes(64) + b"\x1b" if len(digest) == 32 else b""

        self_address = self.client.address
        # It says whose it is, and does not sign for it.
        self.fails(ncn.ErrorKind.KEY, ncn.connect(NETWORK, Broken()).infer, "digits", image=SEVEN)
        self.assertNotIn(threading.main_thread(), threads)

        def once(offer):
            offers.append(offer)
            return len(offers) == 1

        client = ncn.connect(NETWORK, ncn.devnet_key(1), policy=once)
        answer = client.infer("digits", image=SEVEN)
        self.assertEqual((offers[0].request_id, offers[0].model), (answer.request_id, "digits"))
        before = client.balance()
        self.fails(ncn.ErrorKind.NOT_ALLOWED, client.infer, "digits", image=SEVEN)
        raising = ncn.connect(NETWORK, ncn.devnet_key(1), policy=lambda offer: 1 / 0)
        self.assertIn("ZeroDivisionError", str(self.fails(ncn.ErrorKind.NOT_ALLOWED, raising.infer, "digits", image=SEVEN)))
        self.assertEqual(client.balance(), before)

    def test_streams(self):
        stream = self.client.stream("digits", image=SEVEN)
        self.assertEqual((list(stream), stream.answer.text("label")), ([], "7"))
        self.assertEqual(list(stream), [])
        with self.client.stream("digits", image=SEVEN) as unused:
            pass
        self.assertIsNone(unused.answer)
        self.assertEqual(self.client.stream("digits", image=SEVEN).finish().text("label"), "7")

    def test_a_price_that_nobody_has_seen_is_not_paid(self):
        network = ncn.Network([os.environ["NCN_GATEWAY"]], hash=self.client.infer("digits", image=SEVEN).receipt.network)
        careless = ncn.connect(network, ncn.devnet_key(1), ncn.Relayed())
        self.fails(ncn.ErrorKind.TOO_EXPENSIVE, careless.infer, "digits", image=SEVEN)
        self.fails(ncn.ErrorKind.TOO_EXPENSIVE, list, careless.stream("digits", image=SEVEN))
        self.assertEqual(careless.infer("digits", image=SEVEN, max_price=ncn.TOKEN).text("label"), "7")
        seen = ncn.connect(network, ncn.devnet_key(1), ncn.Relayed(), policy=lambda offer: True)
        self.assertEqual(seen.infer("digits", image=SEVEN).text("label"), "7")

    def test_a_forked_process_is_told(self):
        child = os.fork()
        if child == 0:
            try:
                self.client.infer("digits", image=SEVEN)
            except ncn.NcnError as error:
                os._exit(0 if "spawn" in str(error) else 2)
            os._exit(3)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.assertEqual(self.client.infer("digits", image=SEVEN).text("label"), "7")

    def test_streams_that_are_closed_early(self):
        unused = self.client.stream("digits", image=SEVEN)
        unused.close()
        self.assertEqual(list(unused), [])
        with self.assertRaises(ValueError):
            unused.finish()
        starting = self.client.stream("digits", image=SEVEN)
        closing = threading.Timer(0.01, starting.close)
        closing.start()
        self.assertEqual(list(starting), [])
        closing.join()

    def test_receipts_without_a_network(self):
        for line in (ROOT / "docs/receipts.jsonl").read_text().splitlines():
            vector = json.loads(line)
            receipt = json.dumps(vector["receipt"])
            if vector["valid"]:
                self.assertTrue(ncn.verify_receipt(receipt).network)
            else:
                self.fails(ncn.ErrorKind.RECEIPT_REJECTED, ncn.verify_receipt, receipt)
        good = self.client.infer("digits", image=SEVEN).receipt
        self.assertEqual(ncn.verify_receipt(good, good.network), good)
        self.fails(ncn.ErrorKind.RECEIPT_REJECTED, ncn.verify_receipt, good, "0x" + "07" * 32)

    def test_a_thousand_clients_leave_nothing_behind(self):
        def resident():
            return int((pathlib.Path("/proc/self/statm")).read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        def descriptors():
            return len(os.listdir("/proc/self/fd"))

        def connect():
            ncn.connect(ncn.Network.devnet(os.environ["NCN_GATEWAY"], None), payment=ncn.Relayed())

        for _ in range(100):
            connect()
        gc.collect()
        before = (resident(), descriptors())
        for _ in range(1_000):
            connect()
        gc.collect()
        deadline = time.monotonic() + 30
        while descriptors() > before[1] + 8 and time.monotonic() < deadline:
            time.sleep(0.1)
        self.assertLessEqual(descriptors(), before[1] + 8)
        self.assertLess(resident() - before[0], 24 << 20)


class Asyncio(unittest.TestCase):
    def test_calls_and_streams(self):
        async def main():
            client = await ncn.aconnect(NETWORK, ncn.devnet_key(0))
            answers = await asyncio.gather(*(client.infer("digits", image=SEVEN) for _ in range(4)))
            self.assertEqual([answer.text("label") for answer in answers], ["7"] * 4)
            async with client.stream("digits", image=SEVEN) as stream:
                async for part in stream:
                    self.fail(part)
            self.assertEqual(stream.answer.text("label"), "7")
            # A blocking client works beside a loop that runs.
            blocking = await asyncio.get_running_loop().run_in_executor(None, ncn.connect, NETWORK)
            self.assertEqual(blocking.address, ncn.connect(NETWORK).address)

        asyncio.run(main())

    def test_a_stream_whose_loop_is_gone_is_collected(self):
        for paid in (False, True, True, True):
            loop = asyncio.new_event_loop()
            client = loop.run_until_complete(ncn.aconnect(NETWORK, ncn.devnet_key(1)))
            stream = client.stream("digits", image=SEVEN)

            async def start():
                # What is made first is collected first.
                if paid:
                    await stream._begun()
                # Neither is referred to by anything but the other.
                stream.waiting = asyncio.ensure_future(stream.__anext__())
                await asyncio.sleep(0.001)

            loop.run_until_complete(start())
            loop.set_exception_handler(lambda *_: None)
            loop.close()
            del loop, client, stream, start
            gc.collect()

    def test_streams_leave_no_descriptors(self):
        async def main():
            client = await ncn.aconnect(NETWORK, ncn.devnet_key(1))
            for _ in range(3):
                before = len(os.listdir("/proc/self/fd"))
                for _ in range(8):
                    await client.stream("digits", image=SEVEN).finish()
                    async with client.stream("digits", image=SEVEN) as stream:
                        task = asyncio.ensure_future(stream.__anext__())
                        await asyncio.sleep(0.05)
                        task.cancel()
            gc.collect()
            self.assertLessEqual(len(os.listdir("/proc/self/fd")), before + 4)

        asyncio.run(main())

    def test_one_stream_is_one_loops(self):
        async def main():
            client = await ncn.aconnect(NETWORK, ncn.devnet_key(1))
            stream = client.stream("digits", image=SEVEN)
            both = await asyncio.gather(stream.__anext__(), stream.__anext__(), return_exceptions=True)
            self.assertEqual([type(ended) for ended in both], [StopAsyncIteration, RuntimeError])

        asyncio.run(main())

    def test_tensors_without_numbers_are_no_lists_of_lists(self):
        from ncn import _types

        self.assertEqual(_types._nested([], [1 << 40, 0]), [])
        self.assertEqual(_types._nested([1, 2], [2, 1]), [[1], [2]])

    def test_a_call_that_is_cancelled_ends(self):
        async def main():
            client = await ncn.aconnect(NETWORK, ncn.devnet_key(0))
            task = asyncio.ensure_future(client.infer("digits", image=SEVEN))
            await asyncio.sleep(0.01)
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            self.assertEqual((await client.infer("digits", image=SEVEN)).text("label"), "7")

        asyncio.run(main())


if __name__ == "__main__":
    print(sys.version)
    unittest.main(verbosity=2)
