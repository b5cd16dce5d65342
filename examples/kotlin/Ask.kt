// Asks a model of a devnet, and pays for the answer:
//
//   java -cp ... AskKt http://127.0.0.1:50051 digits image examples/data/7.png
//   java -cp ... AskKt http://127.0.0.1:50051 smollm2 prompt "The capital of France is"
//
// ncn-bindings/kotlin/README.md says what belongs on the class path.
import java.io.File
import java.nio.file.Files
import kotlin.system.exitProcess
import kotlinx.coroutines.runBlocking
import network.ncn.*

private fun value(given: String): Value {
    val file = File(given)
    if (!file.isFile) return Value.Text(given)
    return Value.File(Files.probeContentType(file.toPath()) ?: "application/octet-stream", file.readBytes())
}

private suspend fun ask(gateway: String, model: String, input: String, given: String) {
    connectToDevnet(gateway).use { client ->
        val order = Order(model, mapOf(input to value(given)))
        println("at most ${client.estimate(order).maximum} of ${TOKEN} a token")
        client.events(order).collect { event ->
            when (event) {
                is Event.Part -> print(event.text() ?: "")
                is Event.Restarted -> println("\nanother compute node begins anew")
                is Event.Finished -> {
                    val answer = event.answer
                    println()
                    answer.output.forEach { (name, value) -> if (value is Value.Text) println("$name: ${value.text}") }
                    // Anyone can check it, later and elsewhere.
                    val receipt = verifyReceipt(answer.receipt.json, answer.receipt.network)
                    println("paid ${receipt.cost}; approved by ${receipt.approvals} validators of network ${receipt.network}")
                }
            }
        }
    }
}

fun main(arguments: Array<String>) {
    if (arguments.size != 4) {
        System.err.println("usage: GATEWAY MODEL INPUT TEXT-OR-FILE")
        exitProcess(2)
    }
    val status = try {
        runBlocking { ask(arguments[0], arguments[1], arguments[2], arguments[3]) }
        0
    } catch (error: NcnException.Failed) {
        System.err.println("${error.kind}: ${error.reason}")
        1
    }
    shutDown(2_000uL)
    exitProcess(status)
}
