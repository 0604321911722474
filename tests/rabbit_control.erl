%% Evaluates expressions inside a RabbitMQ node, for tests/rabbit.py.
%%
%% rabbitmqctl starts an Erlang machine for every call; this answers in less than a millisecond.
%% The node evaluates the file at the end of its boot, so an answer also means "booted".
%% Frames are a length (4 bytes, big endian) and UTF-8 text. Answers begin with + (the value:
%% a binary as it is, any other term printed) or - (what was raised).
%%
%% The first connection is the owner's: when it closes, the process that started this node is gone,
%% perhaps by kill -9, and the node goes too, with its epmd and its directory. So it does if nobody
%% comes: then the owner has ended while the node booted.

spawn(fun() ->
    Evaluate = fun(Text) ->
        try
            {ok, Tokens, _} = erl_scan:string(unicode:characters_to_list(Text)),
            {ok, Expressions} = erl_parse:parse_exprs(Tokens),
            case erl_eval:exprs(Expressions, []) of
                {value, Binary, _} when is_binary(Binary) -> [$+, Binary];
                {value, Value, _} -> [$+ | io_lib:format("~0tp", [Value])]
            end
        catch
            Class:Reason -> [$- | io_lib:format("~0tp", [{Class, Reason}])]
        end
    end,
    Serve = fun Serve(Socket) ->
        case gen_tcp:recv(Socket, 0) of
            {ok, Text} ->
                gen_tcp:send(Socket, unicode:characters_to_binary(Evaluate(Text))),
                Serve(Socket);
            {error, _} ->
                gen_tcp:close(Socket)
        end
    end,
    Leave = fun() ->
        os:cmd("kill " ++ os:getenv("WORKERKIT_EPMD_PID")),
        %% Again and again, because the node still writes.
        [file:del_dir_r(filename:dirname(os:getenv("WORKERKIT_CONTROL"))) || _ <- [1, 2, 3]],
        erlang:halt(1, [{flush, false}])
    end,
    Follow = fun(Socket) ->
        gen_tcp:recv(Socket, 0),
        Leave()
    end,
    %% A socket closes with the process that controls it, hence the handing over.
    Hand = fun(Socket, Function) ->
        Process = spawn(fun() -> receive yours -> Function(Socket) end end),
        ok = gen_tcp:controlling_process(Socket, Process),
        Process ! yours
    end,
    Accept = fun Accept(Listener, Function, Patience) ->
        case gen_tcp:accept(Listener, Patience) of
            {ok, Socket} ->
                Hand(Socket, Function),
                Accept(Listener, Serve, infinity);
            {error, timeout} ->
                Leave()
        end
    end,
    Options = [binary, {packet, 4}, {active, false}, {ifaddr, {local, os:getenv("WORKERKIT_CONTROL")}}],
    {ok, Listener} = gen_tcp:listen(0, Options),
    Accept(Listener, Follow, 60000)
end).
