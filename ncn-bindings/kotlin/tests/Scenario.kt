// The scenario of every language: ../../scenario.json, at the gateways of NCN_GATEWAYS.
import com.google.gson.JsonArray
import com.google.gson.JsonElement
import com.google.gson.JsonObject
import com.google.gson.JsonParser
import com.google.gson.JsonPrimitive
import java.io.File
import java.math.BigInteger
import kotlin.system.exitProcess
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.takeWhile
import kotlinx.coroutines.runBlocking
import network.ncn.*

private val root = File(System.getenv("NCN_ROOT"))
private val gateways = JsonParser.parseString(System.getenv("NCN_GATEWAYS")).asJsonObject

private fun JsonObject.string(name: String): String? = get(name)?.asString

private fun inputs(call: JsonObject): Map<String, Value> = call["inputs"].asJsonObject.asMap().mapValues { (_, given) ->
    val input = given.asJsonObject
    input.string("text")?.let { Value.Text(it) } ?: Value.File("image/png", File(root, input.string("file")!!).readBytes())
}

private fun what(answer: Answer) = JsonObject().apply {
    val texts = JsonObject()
    answer.output.forEach { (name, value) -> if (value is Value.Text) texts.addProperty(name, value.text) }
    add("output", texts)
    addProperty("text", answer.text())
    addProperty("finish", answer.finish)
    addProperty("cost", answer.cost.toString())
}

private suspend fun followed(events: Flow<Event>, call: JsonObject): JsonObject {
    val parts = mutableListOf<String>()
    var restarts = 0
    var given = JsonObject()
    events.takeWhile { event ->
        if (event is Event.Part) parts.add(event.text()!!)
        if (event is Event.Restarted) {
            parts.clear()
            restarts += 1
        }
        if (event is Event.Finished) {
            check(event.text() == parts.joinToString("")) { "the parts are $parts" }
            given = what(event.answer).apply { addProperty("parts", parts.size); addProperty("restarts", restarts) }
        }
        parts.size != call["after"]?.asInt
    }.collect {}
    return given
}

private fun verify(call: JsonObject) {
    File(root, call.string("receipts")!!).readLines().forEach { line ->
        val vector = JsonParser.parseString(line).asJsonObject
        val verified = runCatching { verifyReceipt(vector["receipt"].toString()) }
        check(verified.isSuccess == vector["valid"].asBoolean) { vector.string("what")!! }
    }
}

private suspend fun perform(call: JsonObject): JsonObject {
    if (call.string("call") == "verify") return JsonObject().also { verify(call) }
    val gateway = gateways.string(call.string("gateway") ?: "honest")!!
    val network = Network.Custom(null, System.getenv("NCN_NETWORK"), 1uL)
    val connection = Connection(listOf(gateway), network, Key.Secret(System.getenv("NCN_KEY")), Payment.Relayed, maxPrice = TOKEN)
    Client.connect(connection).use { client ->
        val model = call.string("model") ?: ""
        return when (call.string("call")) {
            "connect" -> JsonObject()
            "models" -> JsonObject().apply {
                add("models", JsonArray().apply { client.models().map { it.name }.sorted().forEach(::add) })
            }
            "embed" -> JsonObject().apply {
                add("embedding", JsonArray().apply { client.embed(model, call.string("text")!!).forEach(::add) })
            }
            "chat" -> {
                val messages = call["messages"].asJsonArray.map { Message(it.asJsonObject.string("role")!!, it.asJsonObject.string("content")!!) }
                followed(client.conversation(model, messages), call)
            }
            else -> {
                val limit = call.string("maxPrice")?.let(::BigInteger)
                val order = Order(model, inputs(call), maxPrice = limit, timeout = call["timeout"]?.asLong?.toULong())
                if (call.string("call") == "infer") what(client.infer(order)) else followed(client.events(order), call)
            }
        }
    }
}

private fun differs(expected: JsonElement, given: JsonElement?): Boolean = when {
    expected is JsonObject -> expected.asMap().any { (name, value) -> differs(value, (given as? JsonObject)?.get(name)) }
    expected is JsonArray -> given !is JsonArray || expected.size() != given.size() || expected.zip(given).any { (one, other) -> differs(one, other) }
    expected is JsonPrimitive && expected.isNumber -> given?.asDouble != expected.asDouble
    else -> expected != given
}

private fun camel(kind: ErrorKind) = kind.name.lowercase().replace(Regex("_(.)")) { it.groupValues[1].uppercase() }

private suspend fun check(call: JsonObject): Boolean {
    var expected: JsonElement = call["fails"] ?: call["gives"] ?: JsonObject()
    val given = try {
        perform(call)
    } catch (error: NcnException.Failed) {
        expected = call["fails"] ?: JsonPrimitive("an answer")
        JsonObject().apply {
            addProperty("kind", camel(error.kind))
            addProperty("paid", error.paid)
            addProperty("says", error.reason)
        }
    } catch (error: Exception) {
        JsonPrimitive(error.toString())
    }
    val good = !differs(expected, given)
    println(if (good) "ok ${call.string("name")}" else "not ok ${call.string("name")}: $given, not $expected")
    return good
}

fun main() {
    val scenario = JsonParser.parseString(File(root, "ncn-bindings/scenario.json").readText()).asJsonObject
    val good = scenario["groups"].asJsonArray.map { group ->
        runBlocking { group.asJsonArray.map { async { check(it.asJsonObject) } }.awaitAll().all { it } }
    }
    shutDown(2_000uL)
    exitProcess(if (good.all { it }) 0 else 1)
}
