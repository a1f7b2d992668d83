// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// health answers probes (§1.4): every registered service, and "" for the whole
// part, is SERVING while ready says so.
type health struct {
	healthpb.UnimplementedHealthServer
	services interface {
		GetServiceInfo() map[string]grpc.ServiceInfo
	}
	ready func() bool
}

func (h *health) Check(ctx context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	_ = grpc.SetHeader(ctx, metadata.Pairs(descriptorsKey, "any")) // see pace
	s := h.status(r.GetService())
	if s == healthpb.HealthCheckResponse_SERVICE_UNKNOWN {
		return nil, status.Errorf(codes.NotFound, "service %q is not served here", r.GetService()) // as the health protocol has it
	}
	return &healthpb.HealthCheckResponse{Status: s}, nil
}

// Watch sends the status now and at each change.
func (h *health) Watch(r *healthpb.HealthCheckRequest, stream grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	poll := time.NewTicker(healthPoll)
	defer poll.Stop()
	last := healthpb.HealthCheckResponse_UNKNOWN
	for {
		if s := h.status(r.GetService()); s != last {
			if err := stream.Send(&healthpb.HealthCheckResponse{Status: s}); err != nil {
				return err
			}
			last = s
		}
		select {
		case <-poll.C:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (h *health) status(service string) healthpb.HealthCheckResponse_ServingStatus {
	if service != "" {
		if _, known := h.services.GetServiceInfo()[service]; !known {
			return healthpb.HealthCheckResponse_SERVICE_UNKNOWN
		}
	}
	if h.ready != nil && !h.ready() {
		return healthpb.HealthCheckResponse_NOT_SERVING
	}
	return healthpb.HealthCheckResponse_SERVING
}
