// SPDX-License-Identifier: Apache-2.0

// Command wellknown prints the descriptors of the google.protobuf files that
// our .proto files import, from the Go library, so that proto/generate.sh needs
// nothing but protoc itself. (Distributions keep the .proto files in another
// package.)
package main

import (
	"log"
	"os"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func main() {
	var set descriptorpb.FileDescriptorSet
	for _, file := range []protoreflect.FileDescriptor{
		durationpb.File_google_protobuf_duration_proto,
		timestamppb.File_google_protobuf_timestamp_proto,
	} {
		set.File = append(set.File, protodesc.ToFileDescriptorProto(file))
	}
	data, err := proto.Marshal(&set)
	if err == nil {
		_, err = os.Stdout.Write(data)
	}
	if err != nil {
		log.Fatal(err)
	}
}
