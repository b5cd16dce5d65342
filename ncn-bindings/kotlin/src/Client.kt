package network.ncn

import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import java.math.BigInteger

/** One token, in its smallest units. */
val TOKEN: BigInteger = BigInteger.TEN.pow(18)

/** A way to `ncn devnet` on this machine, whose keys everybody knows, with payment by signatures. */
suspend fun connectToDevnet(gateway: String = "http://127.0.0.1:50051", key: UInt = 0u): Client =
    Client.connect(Connection(listOf(gateway), Network.Devnet, Key.Devnet(key), Payment.Relayed, maxPrice = TOKEN))

/**
 * What happens to a request, up to its verified answer. Each collection orders and pays; one that ends before the answer, or is cancelled, cancels the
 * request: what was delivered until then is paid for, and where nothing was, the payment comes back.
 */
fun Client.events(order: Order): Flow<Event> = followed { stream(order) }

/** The same for a conversation, with a model that takes the input `messages`. */
fun Client.conversation(model: String, messages: List<Message>, parameters: String? = null): Flow<Event> =
    followed { chat(model, messages, parameters) }

private fun followed(start: suspend () -> Running): Flow<Event> = flow {
    start().use { running ->
        while (true) emit(running.next() ?: break)
    }
}

/** The text that a part or an answer has under this name. */
fun Event.text(name: String = "text"): String? = when (this) {
    is Event.Part -> (values[name] as? Value.Text)?.text
    is Event.Finished -> answer.text(name)
    is Event.Restarted -> null
}

/** The text that an answer has under this name. */
fun Answer.text(name: String = "text"): String? = (output[name] as? Value.Text)?.text

/** What kind of error it is, what is wrong, whether another try may help, and whether money has moved. */
val NcnException.kind: ErrorKind get() = (this as NcnException.Failed).kind
