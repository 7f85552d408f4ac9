-- Wireshark dissector for QEMU's migration multiplexing protocol
--
-- docs/interop/migration-mux.rst specifies the protocol.  Use:
--
--   wireshark -X lua_script:qemu-migration-mux.lua
--
-- or put this file into Wireshark's folder of personal Lua plugins; but not as
-- root, for whom Wireshark 4.4 loads neither.  Tested with 4.0 and 4.4.
--
-- A connection is recognised by the magic in its first bytes, of TCP or of
-- what TLS has encrypted; to read one whose beginning was not captured choose
-- "Decode as" QMUX, for the port of TCP or of TLS.  TLS needs its keys (the
-- preference tls.keylog_file), and TCP is to put segments in their order
-- (tcp.reassemble_out_of_order).
--
-- What a side does against the protocol is said where it does it, but for the
-- number of control frames, and what can be judged at one end only.
--
-- The messages of stream control are shown as text, where their ends are.
--
-- Streams nbd-<disk> carry NBD.  It is cut into messages here, each of which
-- goes to Wireshark's own dissector `nbd`.  What that does not know is named
-- in one line: with Wireshark 4.0 and 4.4 the handshake, and all but READ,
-- WRITE and DISC; with any version the extended headers, which two QEMUs agree
-- upon.
--
-- SPDX-License-Identifier: GPL-2.0-or-later

local qmux = Proto("qmux", "QEMU Migration Multiplexing")

local MAGIC = 0x514d5558
-- HELLO: what every version has, and all of version 2 but its tail
local HELLO_SIZE, HELLO_V2_SIZE, HEADER_SIZE = 40, 60, 16
local FRAME_LIMIT = 1024 * 1024
local UNANSWERED, LIFETIME_STREAMS = 16, 4096
local OPEN, OPEN_OK, DATA, WINDOW, FIN, FIN_OK, RESET, PING, PONG, GOAWAY =
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10

local type_names = {
    [OPEN] = "OPEN", [OPEN_OK] = "OPEN_OK", [DATA] = "DATA",
    [WINDOW] = "WINDOW", [FIN] = "FIN", [FIN_OK] = "FIN_OK",
    [RESET] = "RESET", [PING] = "PING", [PONG] = "PONG", [GOAWAY] = "GOAWAY",
}
local code_names = {
    [0] = "OK", "PROTOCOL", "INCOMPATIBLE", "TIMEOUT", "LIMIT", "REFUSED",
    "ABORTED",
}
local SOURCE = 1
local role_names = { "source", "destination" }

local f = {
    magic = ProtoField.uint32("qmux.hello.magic", "Magic", base.HEX),
    version_min = ProtoField.uint16("qmux.hello.version_min", "Version min"),
    version_max = ProtoField.uint16("qmux.hello.version_max", "Version max"),
    hello_length = ProtoField.uint32("qmux.hello.length", "Length"),
    features = ProtoField.uint64("qmux.hello.features", "Features", base.HEX),
    required = ProtoField.uint64("qmux.hello.required", "Required", base.HEX),
    max_frame = ProtoField.uint32("qmux.hello.max_frame", "Max frame"),
    max_streams = ProtoField.uint32("qmux.hello.max_streams", "Max streams"),
    role = ProtoField.uint32("qmux.hello.role", "Role", base.DEC, role_names),
    session = ProtoField.bytes("qmux.hello.session", "Session"),
    connection = ProtoField.uint32("qmux.hello.connection", "Connection"),
    tail = ProtoField.bytes("qmux.hello.tail", "Reserved tail"),
    type = ProtoField.uint8("qmux.type", "Type", base.HEX, type_names),
    flags = ProtoField.uint8("qmux.flags", "Flags", base.HEX),
    zero = ProtoField.uint16("qmux.zero", "Zero", base.HEX),
    stream = ProtoField.uint32("qmux.stream", "Stream"),
    name = ProtoField.string("qmux.name", "Name"),
    length = ProtoField.uint32("qmux.length", "Length"),
    arg = ProtoField.uint32("qmux.arg", "Arg"),
    offset = ProtoField.uint32("qmux.offset", "Offset, low 32 bits"),
    code = ProtoField.uint32("qmux.code", "Code", base.DEC, code_names),
    limit = ProtoField.uint64("qmux.limit", "Limit"),
    name_length = ProtoField.uint16("qmux.name_length", "Name length"),
    size = ProtoField.uint64("qmux.final_size", "Final size"),
    opaque = ProtoField.uint64("qmux.opaque", "Opaque", base.HEX),
    text = ProtoField.string("qmux.text", "Text"),
    data = ProtoField.bytes("qmux.data", "Data"),
    nbd = ProtoField.string("qmux.nbd", "NBD"),
    control = ProtoField.none("qmux.control", "Message"),
    control_length = ProtoField.uint32("qmux.control.length", "Length"),
    control_type = ProtoField.string("qmux.control.type", "Type"),
    control_text = ProtoField.string("qmux.control.text", "Text"),
}
qmux.fields = f

local e = {
    malformed = ProtoExpert.new("qmux.malformed", "Malformed",
                                expert.group.MALFORMED,
                                expert.severity.ERROR),
    protocol = ProtoExpert.new("qmux.violation", "Against the protocol",
                               expert.group.PROTOCOL, expert.severity.ERROR),
    failed = ProtoExpert.new("qmux.failed", "Failed",
                             expert.group.RESPONSE_CODE,
                             expert.severity.WARN),
    skipped = ProtoExpert.new("qmux.skipped", "Unknown type, skipped",
                              expert.group.UNDECODED, expert.severity.NOTE),
}
qmux.experts = e

local tcp_stream = Field.new("tcp.stream")

-- What is known of each connection, by tcp.stream: streams by id, its two
-- sides by address, and which one has claimed each role.  Packets come in
-- order only when they are dissected for the first time, so findings are kept
-- for later.
local connections = {}
local findings = {}

function qmux.init()
    connections = {}
    findings = {}
end

local function connection()
    local field = tcp_stream()
    local number = field and field.value or 0

    connections[number] = connections[number] or
        { streams = {}, sides = {}, roles = {} }
    return connections[number]
end

local function side_at(conn, address, port)
    local name = tostring(address) .. " " .. port

    conn.sides[name] = conn.sides[name] or { last_id = 0, pings = {} }
    return conn.sides[name]
end

-- The sender of a packet, and its receiver
local function sides(conn, pinfo)
    return side_at(conn, pinfo.src, pinfo.src_port),
        side_at(conn, pinfo.dst, pinfo.dst_port)
end

-- Once for each message of the connection; later what came of it then
local function once(key, action)
    if findings[key] == nil then
        findings[key] = action() or false
    end
    return findings[key] or nil
end

-- One direction of a stream: bytes seen, and what makes no message yet
local function direction(stream, from)
    stream[from] = stream[from] or
        { seen = 0, chunks = {}, waiting = 0, needed = 1 }
    return stream[from]
end

local function stream_of(conn, id)
    conn.streams[id] = conn.streams[id] or
        { requests = {}, limits = {}, reset = {} }
    return conn.streams[id]
end

-- Messages within DATA ------------------------------------------------------

-- The complete messages of which this DATA has the end.  `parse` gets the
-- bytes and the stream, and returns the size of the message at the beginning;
-- with `what`, unless that is only the size of what it needs to tell more.
local function collect(dir, stream, range, parse)
    local messages = {}

    dir.chunks[#dir.chunks + 1] = range:bytes()
    dir.waiting = dir.waiting + range:len()
    while dir.waiting >= dir.needed do
        local all = dir.chunks[1]
        for i = 2, #dir.chunks do
            all:append(dir.chunks[i])
        end
        dir.chunks = { all }
        local message = parse(all, stream)
        dir.needed = message.size
        if message.what and message.size <= all:len() then
            message.bytes = all:subset(0, message.size)
            messages[#messages + 1] = message
            dir.waiting = all:len() - message.size
            dir.chunks = {}
            if dir.waiting > 0 then
                dir.chunks[1] = all:subset(message.size, dir.waiting)
            end
            dir.needed = 1
        end
    end
    return messages
end

-- NBD ----------------------------------------------------------------------

local nbd_commands = {
    [0] = "READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE", "WRITE_ZEROES",
    "BLOCK_STATUS", "RESIZE",
}
local nbd_options = {
    "EXPORT_NAME", "ABORT", "LIST", "PEEK_EXPORT", "STARTTLS", "INFO", "GO",
    "STRUCTURED_REPLY", "LIST_META_CONTEXT", "SET_META_CONTEXT",
    "EXTENDED_HEADERS",
}
local NBD_GREETING, NBD_OPTION, NBD_OPTION_REPLY =
    0x4e42444d, 0x49484156, 0x0003e889
local NBD_REQUEST, NBD_EXTENDED_REQUEST = 0x25609513, 0x21e41c71
local NBD_SIMPLE_REPLY, NBD_STRUCTURED_REPLY, NBD_EXTENDED_REPLY =
    0x67446698, 0x668e33ef, 0x6e8a278c
local NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_DISC, NBD_CMD_BLOCK_STATUS =
    0, 1, 2, 7
local NBD_CMD_FLAG_PAYLOAD_LEN = 0x20
local NBD_PORT = 10809

local function nbd_command(number)
    return nbd_commands[number] or ("command " .. number)
end

local function nbd_has_payload(range)
    local flags, command = range(4, 2):uint(), range(6, 2):uint()

    return command == NBD_CMD_WRITE or
        (command == NBD_CMD_BLOCK_STATUS and
         math.floor(flags / NBD_CMD_FLAG_PAYLOAD_LEN) % 2 == 1)
end

-- What a reply answers is known by the cookie.
local function nbd_request(range, stream, length)
    local command = range(6, 2):uint()

    stream.requests[range(8, 8):bytes():tohex()] = {
        command = command, length = length,
    }
    return nbd_has_payload(range) and length or 0, string.format(
        "%s request, offset %s, length %.0f", nbd_command(command),
        tostring(range(16, 8):uint64()), length), command
end

local function nbd_reply(range, stream)
    local request = stream.requests[range(8, 8):bytes():tohex()]

    if not request then
        return "reply to an unknown request", nil, 0
    end
    return nbd_command(request.command) .. " reply", request.command,
        request.command == NBD_CMD_READ and request.length or 0
end

-- By the first bytes of a message: those of the header, and a function that
-- returns those behind it, what to call it, and the command that it is about.
local nbd_messages = {
    [NBD_GREETING] = { 18, function() return 0, "greeting" end },
    [NBD_OPTION] = { 16, function(range)
        local option = range(8, 4):uint()
        return range(12, 4):uint(),
            "option " .. (nbd_options[option] or option)
    end },
    [NBD_OPTION_REPLY] = { 20, function(range)
        local option = range(8, 4):uint()
        return range(16, 4):uint(), string.format(
            "reply 0x%x to option %s", range(12, 4):uint(),
            nbd_options[option] or option)
    end },
    [NBD_REQUEST] = { 28, function(range, stream)
        return nbd_request(range, stream, range(24, 4):uint())
    end },
    [NBD_EXTENDED_REQUEST] = { 32, function(range, stream)
        return nbd_request(range, stream, range(24, 8):uint64():tonumber())
    end },
    [NBD_SIMPLE_REPLY] = { 16, function(range, stream)
        local what, command, length = nbd_reply(range, stream)
        local error = range(4, 4):uint()
        return error == 0 and length or 0,
            string.format("%s, error %d", what, error), command
    end },
    [NBD_STRUCTURED_REPLY] = { 20, function(range, stream)
        local what, command = nbd_reply(range, stream)
        return range(16, 4):uint(),
            string.format("%s, type %d", what, range(6, 2):uint()), command
    end },
    [NBD_EXTENDED_REPLY] = { 32, function(range, stream)
        local what, command = nbd_reply(range, stream)
        return range(24, 8):uint64():tonumber(),
            string.format("%s, type %d", what, range(6, 2):uint()), command
    end },
}
-- The client's flags, which have no magic before them
local nbd_flags = { 4, function(range)
    return 0, "flags 0x" .. range(0, 4):bytes():tohex()
end }

-- The message at the beginning of bytes, as nbd_messages has it, with its
-- magic; only a length that is needed to tell more if there are too few.
local function nbd_message(bytes, stream)
    if bytes:len() < 4 then
        return { size = 4 }
    end
    local range = bytes:tvb("NBD")()
    local magic = range(0, 4):uint()
    local kind = nbd_messages[magic] or nbd_flags
    if bytes:len() < kind[1] then
        return { size = kind[1] }
    end
    local behind, what, command = kind[2](range, stream)
    return { size = kind[1] + behind, what = what, command = command,
             magic = magic }
end

-- What Wireshark knows in versions that have no name for the dissector
local nbd_old_commands = { [NBD_CMD_READ] = true, [NBD_CMD_WRITE] = true,
                           [NBD_CMD_DISC] = true }

-- Let Wireshark's dissector have a message.  It finds the other messages of a
-- stream by addresses and ports, and the server by its port, so they differ
-- from those of the connection meanwhile.
local function nbd_call(message, pinfo, tree, id, from_server)
    local source, destination = pinfo.src_port, pinfo.dst_port
    local handle = Dissector.get("nbd")

    pinfo.src_port = from_server and NBD_PORT or id
    pinfo.dst_port = from_server and id or NBD_PORT
    if handle then
        if message.magic ~= NBD_EXTENDED_REQUEST and
           message.magic ~= NBD_EXTENDED_REPLY then
            handle:call(message.bytes:tvb("NBD message"), pinfo, tree)
        end
    elseif nbd_old_commands[message.command] then
        DissectorTable.try_heuristics(
            "tcp", message.bytes:tvb("NBD message"), pinfo, tree)
    end
    pinfo.src_port, pinfo.dst_port = source, destination
end

local function dissect_nbd(range, pinfo, tree, conn, id, key)
    local stream = stream_of(conn, id)
    local from = sides(conn, pinfo)
    local messages = once(key .. " nbd", function()
        return collect(direction(stream, from), stream, range, nbd_message)
    end)

    for _, message in ipairs(messages) do
        tree:add(f.nbd, range, message.what):set_generated()
        pinfo.cols.info:append(" " .. message.what)
        pinfo.cols.info:fence()
        nbd_call(message, pinfo, tree, id, from ~= conn.roles[SOURCE])
        pinfo.cols.info:clear()
    end
    if #messages == 0 then
        tree:append_text(", within an NBD message")
    end
end

-- Stream control -----------------------------------------------------------

local CONTROL_MAX = 65536

-- The value of the member "type" of the outermost object, or nil
local function control_type(text)
    local function plain(string)
        return (string:gsub("[{}%[%]]", "_"))
    end
    local inner = text:gsub("\\.", "__"):gsub('"[^"]*"', plain)
        :gsub("^%s*{", ""):gsub("%b{}", ""):gsub("%b[]", "")

    return inner:match('"type"%s*:%s*"([^"]*)"')
end

-- As collect() wants it.  With a length that cannot be, all is shown as one.
local function control_message(bytes)
    if bytes:len() < 4 then
        return { size = 4 }
    end
    local length = bytes:tvb("Length")(0, 4):uint()
    if length == 0 or length > CONTROL_MAX then
        return { size = bytes:len(), what = "malformed", length = length }
    end
    if bytes:len() < 4 + length then
        return { size = 4 + length }
    end
    local text = bytes:subset(4, length):tvb("Message")():string(ENC_UTF_8)
    local kind = control_type(text)
    return { size = 4 + length, what = kind or "no type", length = length,
             kind = kind, text = text }
end

local function dissect_control(range, pinfo, tree, conn, id, key)
    local stream = stream_of(conn, id)
    local messages = once(key .. " control", function()
        return collect(direction(stream, (sides(conn, pinfo))), stream,
                       range, control_message)
    end)

    for _, message in ipairs(messages) do
        local item = tree:add(f.control, range)
        local length = item:add(f.control_length, range, message.length)
        item:append_text(": " .. message.what):set_generated()
        length:set_generated()
        if message.kind then
            item:add(f.control_type, range, message.kind):set_generated()
        end
        if message.text then
            item:add(f.control_text, range, message.text):set_generated()
        end
        if not message.text then
            length:add_proto_expert_info(e.malformed,
                                         "Message of a bad length")
        elseif not message.kind then
            item:add_proto_expert_info(e.malformed, "Message without a type")
        end
        pinfo.cols.info:append(" " .. message.what)
        pinfo.cols.info:fence()
    end
    if #messages == 0 then
        tree:append_text(", within a message")
    end
end

-- HELLO and frames ---------------------------------------------------------

local function dissect_hello(tvb, pinfo, tree, key)
    local item = tree:add(qmux, tvb, "QEMU Migration Multiplexing, HELLO")
    local role = tvb(36, 4):uint()
    local length = tvb(8, 4):uint()
    local conn = connection()

    item:add(f.magic, tvb(0, 4))
    local version = item:add(f.version_min, tvb(4, 2))
    item:add(f.version_max, tvb(6, 2))
    local size = item:add(f.hello_length, tvb(8, 4))
    item:add(f.features, tvb(12, 8))
    item:add(f.required, tvb(20, 8))
    local frame = item:add(f.max_frame, tvb(28, 4))
    item:add(f.max_streams, tvb(32, 4))
    local claim = item:add(f.role, tvb(36, 4))
    local shortest = tvb(6, 2):uint() < 2 and HELLO_SIZE or HELLO_V2_SIZE
    if shortest == HELLO_V2_SIZE and tvb:len() >= shortest then
        item:add(f.session, tvb(40, 16))
        local index = item:add(f.connection, tvb(56, 4))
        if tvb(56, 4):uint() > 0 then
            index:add_proto_expert_info(e.protocol, "Not the first connection")
        end
    end
    if tvb:len() > shortest then
        item:add(f.tail, tvb(shortest))
    end
    if length < shortest or length > 4096 then
        size:add_proto_expert_info(e.malformed, "HELLO of a bad length")
    end
    if tvb(4, 2):uint() > tvb(6, 2):uint() then
        version:add_proto_expert_info(e.malformed, "No version in the range")
    end
    if tvb(28, 4):uint() < 4096 then
        frame:add_proto_expert_info(e.malformed, "Max frame below 4096")
    end
    if not role_names[role] then
        claim:add_proto_expert_info(e.malformed, "Unknown role")
    end
    local other = once(key, function()
        local from = sides(conn, pinfo)
        from.max_frame = math.min(tvb(28, 4):uint(), FRAME_LIMIT)
        from.max_streams = tvb(32, 4):uint()
        conn.roles[role] = conn.roles[role] or from
        return conn.roles[role] ~= from
    end)
    if other then
        claim:add_proto_expert_info(e.protocol, "Both sides claim this role")
    end
    pinfo.cols.info:append(string.format(
        " [HELLO, %s, version %d to %d]", role_names[role] or "no role",
        tvb(4, 2):uint(), tvb(6, 2):uint()))
end

-- What is wrong with a header, or nil
local function header_fault(kind, flags, zero, id, length)
    local exact = { [OPEN_OK] = 8, [WINDOW] = 8, [FIN] = 8, [FIN_OK] = 8,
                    [PING] = 8, [PONG] = 8 }
    if kind >= 0x80 then
        return length > FRAME_LIMIT and "Bad length" or nil
    elseif not type_names[kind] then
        return "Unknown type"
    elseif flags ~= 0 or zero ~= 0 then
        return "Flags or zero field not 0"
    elseif (kind >= PING) ~= (id == 0) then
        return id == 0 and "No stream" or "A stream, though about the connection"
    elseif exact[kind] and length ~= exact[kind]
        or kind == DATA and (length == 0 or length > FRAME_LIMIT)
        or kind == OPEN and (length < 13 or length > 267)
        or (kind == RESET or kind == GOAWAY) and length > 1024 then
        return "Bad length"
    end
end

-- By type: note what a frame does, and return what is against the protocol, or
-- nil.  Frames cross, so their sender is judged by what it has sent itself and
-- by what has been sent to it: it can have received no more than that.
local follow = {}

follow[OPEN] = function(conn, from, to, frame)
    if frame.stream then
        return "This id was used before"
    end
    local name, length = frame.payload(12), frame.payload(8, 2):uint()
    local stream, last = stream_of(conn, frame.id), from.last_id
    local opened, live, unanswered = 0, 0, 0

    stream.name = name:string()
    stream.opener = from
    stream.limits[to] = frame.number
    from.last_id = math.max(last, frame.id)
    for _, other in pairs(conn.streams) do
        if other.opener == from then
            opened = opened + 1
            live = live + (other.retired and 0 or 1)
            unanswered = unanswered + (other.answered and 0 or 1)
        end
    end
    if length ~= name:len() or frame.payload(10, 2):uint() ~= 0 or
       name:raw():find("[^\32-\126]") then
        return "Bad name"
    elseif conn.roles[SOURCE] and
           (frame.id % 2 == 1) ~= (from == conn.roles[SOURCE]) then
        return "This id is the other side's to open"
    elseif frame.id < last then
        return string.format("Id %d after %d", frame.id, last)
    elseif unanswered > UNANSWERED then
        return "Too many OPEN without an answer"
    elseif opened > LIFETIME_STREAMS then
        return "Too many streams in a lifetime"
    elseif to.max_streams and live > to.max_streams then
        return "Too many streams at once"
    end
end

follow[OPEN_OK] = function(_, from, _, frame)
    local stream = frame.stream
    local again = stream.accepted

    stream.accepted, stream.answered = true, true
    stream.limits[stream.opener] = frame.number
    return from == stream.opener and "The opener accepts"
        or again and "Accepted before" or nil
end

follow[DATA] = function(_, from, to, frame)
    local mine = direction(frame.stream, from)
    local expected = mine.seen % 0x100000000

    mine.seen = mine.seen + frame.length
    if to.max_frame and frame.length > to.max_frame then
        return string.format("More than max frame, %d", to.max_frame)
    elseif frame.arg ~= expected then
        return string.format("Offset %d instead of %d", frame.arg, expected)
    elseif mine.finished then
        return "Data after FIN"
    elseif mine.seen > frame.stream.limits[from] then
        return "Data beyond the credit"
    end
end

follow[WINDOW] = function(_, _, to, frame)
    local limits = frame.stream.limits

    limits[to] = math.max(limits[to], frame.number)
end

follow[FIN] = function(_, from, _, frame)
    local mine = direction(frame.stream, from)
    local again = mine.finished

    mine.finished = true
    if again then
        return "FIN twice"
    elseif frame.number ~= mine.seen then
        return string.format("Final size after %d bytes", mine.seen)
    end
end

follow[FIN_OK] = function(_, from, to, frame)
    local theirs = direction(frame.stream, to)
    local again = theirs.settled

    theirs.settled = true
    frame.stream.retired = frame.stream.retired or
        direction(frame.stream, from).settled
    if not theirs.finished then
        return "FIN_OK without FIN"
    elseif again then
        return "FIN_OK twice"
    elseif frame.number ~= theirs.seen then
        return string.format("Final size after %d bytes", theirs.seen)
    end
end

follow[RESET] = function(_, from, _, frame)
    local stream = frame.stream

    stream.reset[from], stream.answered, stream.retired = true, true, true
end

follow[PING] = function(_, from, _, frame)
    from.pings[#from.pings + 1] = frame.payload(0, 8):bytes():tohex()
    if #from.pings > UNANSWERED then
        return "Too many PING without an answer"
    end
end

follow[PONG] = function(_, _, to, frame)
    if to.pings[1] ~= frame.payload(0, 8):bytes():tohex() then
        return "PONG that answers no PING"
    end
    table.remove(to.pings, 1)
end

follow[GOAWAY] = function(_, from)
    from.gone = true
end

local function breach(conn, frame, from, to)
    local stream, kind = frame.stream, frame.kind

    if from.gone then
        return "After GOAWAY"
    elseif kind >= 0x80 then
        return to.max_frame and frame.length > to.max_frame and
            string.format("More than max frame, %d", to.max_frame) or nil
    elseif frame.id ~= 0 and kind ~= OPEN then
        if not stream then
            return "No such stream was opened"
        elseif stream.reset[from] then
            return "After RESET"
        elseif kind ~= OPEN_OK and kind ~= RESET and not stream.accepted then
            return "Before OPEN_OK"
        end
    end
    return follow[kind](conn, from, to, frame)
end

local payload_fields = {
    [OPEN_OK] = f.limit, [DATA] = f.data, [WINDOW] = f.limit, [FIN] = f.size,
    [FIN_OK] = f.size, [RESET] = f.text, [PING] = f.opaque,
    [PONG] = f.opaque, [GOAWAY] = f.text,
}

local function dissect_payload(payload, item, kind)
    if kind ~= OPEN then
        item:add(payload_fields[kind], payload)
        return
    end
    item:add(f.limit, payload(0, 8))
    item:add(f.name_length, payload(8, 2))
    item:add(f.zero, payload(10, 2))
    item:add(f.text, payload(12)):set_text("Name: " .. payload(12):string())
end

local function arg_field(kind)
    return kind == DATA and f.offset or
        (kind == RESET or kind == GOAWAY) and f.code or f.arg
end

local function dissect_frame(tvb, pinfo, tree, key)
    local kind, flags = tvb(0, 1):uint(), tvb(1, 1):uint()
    local id, length = tvb(4, 4):uint(), tvb(8, 4):uint()
    local arg = tvb(12, 4):uint()
    local conn = connection()
    local what = type_names[kind] or string.format("type 0x%02x", kind)
    local item = tree:add(qmux, tvb, "QEMU Migration Multiplexing, " .. what)

    local type_item = item:add(f.type, tvb(0, 1))
    item:add(f.flags, tvb(1, 1))
    item:add(f.zero, tvb(2, 2))
    local stream_item = item:add(f.stream, tvb(4, 4))
    item:add(f.length, tvb(8, 4))
    local arg_item = item:add(arg_field(kind), tvb(12, 4))
    local fault = header_fault(kind, flags, tvb(2, 2):uint(), id, length)
    if fault then
        type_item:add_proto_expert_info(e.malformed, fault)
        pinfo.cols.info:append(" [" .. what .. ", malformed]")
        return
    end
    local broken = once(key, function()
        local payload = length > 0 and tvb(HEADER_SIZE) or nil
        return breach(conn, {
            kind = kind, id = id, arg = arg, length = length,
            stream = conn.streams[id], payload = payload,
            number = length >= 8 and payload(0, 8):uint64():tonumber(),
        }, sides(conn, pinfo))
    end)
    if broken then
        type_item:add_proto_expert_info(e.protocol, broken)
    end
    if kind >= 0x80 then
        type_item:add_proto_expert_info(e.skipped)
        pinfo.cols.info:append(" [" .. what .. "]")
        return
    end
    local name = conn.streams[id] and conn.streams[id].name
    if name then
        stream_item:append_text(" (" .. name .. ")")
        item:add(f.name, tvb(4, 4), name):set_generated()
        what = what .. " " .. name
    end
    if length > 0 then
        dissect_payload(tvb(HEADER_SIZE), item, kind)
    end
    if kind == RESET or kind == GOAWAY and arg ~= 0 then
        arg_item:add_proto_expert_info(e.failed, string.format(
            "%s: %s", code_names[arg] or arg,
            length > 0 and tvb(HEADER_SIZE):string() or "no reason given"))
    end
    item:append_text(string.sub(what, #(type_names[kind]) + 1))
    pinfo.cols.info:append(" [" .. what .. (kind == DATA and ", " .. length
                                            or "") .. "]")
    pinfo.cols.info:fence()
    if kind == DATA and name == "control" then
        dissect_control(tvb(HEADER_SIZE), pinfo, item, conn, id, key)
    elseif kind == DATA and name and string.sub(name, 1, 4) == "nbd-" then
        dissect_nbd(tvb(HEADER_SIZE), pinfo, item, conn, id, key)
    end
end

-- The bytes of the HELLO or frame at the beginning: a length that cannot be
-- right is not waited for, its header is shown.
local function message_length(range)
    local length = range(8, 4):uint()

    if range(0, 4):uint() == MAGIC then
        return math.max(HELLO_SIZE, math.min(length, 4096))
    end
    return HEADER_SIZE + (length <= FRAME_LIMIT and length or 0)
end

-- Not with dissect_tcp_pdus(), which does not wait for the rest of a HELLO
-- when it is called for heuristics.
function qmux.dissector(tvb, pinfo, tree)
    local offset, whole = 0, tvb:len()

    pinfo.cols.protocol = "QMUX"
    pinfo.cols.info = ""
    while offset < whole do
        local left = whole - offset
        local size = left >= 12 and message_length(tvb(offset))
        if not size or left < size then
            pinfo.desegment_offset = offset
            pinfo.desegment_len = size and size - left
                or DESEGMENT_ONE_MORE_SEGMENT
            break
        end
        local message = tvb(offset, size)
        -- Not with `whole`: later, less of the same segment may be here.
        -- What is here twice, in two calls for one packet, differs in the
        -- header or in the number behind it.
        local key = string.format("%d %d %s", pinfo.number, offset,
            message(0, math.min(size, HEADER_SIZE + 8)):bytes():tohex())
        if message(0, 4):uint() == MAGIC then
            dissect_hello(message, pinfo, tree, key)
        else
            dissect_frame(message, pinfo, tree, key)
        end
        offset = offset + size
    end
    pinfo.cols.protocol = "QMUX"
    return whole
end

-- The first bytes of a connection tell.
local function begins(tvb)
    return tvb:len() >= 4 and tvb(0, 4):uint() == MAGIC
end

qmux:register_heuristic("tcp", function(tvb, pinfo, tree)
    if not begins(tvb) then
        return false
    end
    pinfo.conversation = qmux
    qmux.dissector(tvb, pinfo, tree)
    return true
end)

-- The conversation stays that of TLS, which asks again for each record: what
-- was recognised has to be kept here.
qmux:register_heuristic("tls", function(tvb, pinfo, tree)
    local conn = connection()

    conn.tls = conn.tls or begins(tvb)
    if conn.tls then
        qmux.dissector(tvb, pinfo, tree)
    end
    return conn.tls
end)

DissectorTable.get("tcp.port"):add_for_decode_as(qmux)
DissectorTable.get("tls.port"):add_for_decode_as(qmux)
