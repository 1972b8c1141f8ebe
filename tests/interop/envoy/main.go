// Holds a configuration against Envoy's own schema: every message and, by their rules, every value.
package main

import (
	"fmt"
	"os"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/buffer/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/http/original_ip_detection/xff/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// What a message says of itself; an Any is opaque to the one that holds it.
type ruled interface{ ValidateAll() error }

func main() {
	text, err := os.ReadFile(os.Args[1])
	fail(err)
	var tree bootstrap.Bootstrap
	fail(protojson.Unmarshal(text, &tree))
	check(&tree)
}

func check(message proto.Message) {
	if each, ok := message.(ruled); ok {
		fail(each.ValidateAll())
	}
	fmt.Println(message.ProtoReflect().Descriptor().FullName())
	look(message.ProtoReflect())
}

func look(message protoreflect.Message) {
	if held, ok := message.Interface().(*anypb.Any); ok {
		inner, err := held.UnmarshalNew()
		fail(err)
		check(inner)
		return
	}
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap():
			if field.MapValue().Message() != nil {
				value.Map().Range(func(_ protoreflect.MapKey, each protoreflect.Value) bool {
					look(each.Message())
					return true
				})
			}
		case field.Message() == nil:
		case field.IsList():
			for at := 0; at < value.List().Len(); at++ {
				look(value.List().Get(at).Message())
			}
		default:
			look(value.Message())
		}
		return true
	})
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
